//! Memory that nobody uses, given back to the system: what the allocator keeps, and the part of the program that only
//! its start needed.
//!
//! glibc gives back what lies at its heap's end, and what is alive there holds everything below it: after a
//! burst tens of megabytes stay this process's, whatever is cut off, and pieces of other sizes come on
//! top of them. Who judges by what the system counts has to have them given back first. Of the program, an idle node
//! uses a fifth of what its start has brought in.
#![expect(unsafe_code, reason = "malloc_trim(3) and madvise(2) are to be had from C only")]

use std::fs;
use std::ops::Range;

/// Gives back every whole page that is free, and holds up who wants memory meanwhile: 5 ms where 60 MB had been
/// used and most of them freed, 60 ms at 500 MB, 400 ms at 4 GB. Other allocators (musl's) do so by themselves.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and no pointer, and any thread may call it at any time (malloc_trim(3), MT-Safe).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the pages that hold the program's code. Those that are used come back from the file with their next use,
/// in about a hundred pieces, which holds up a busy node by three milliseconds at most; those of the start do not.
pub(crate) fn give_back_code() {
    let Some(code) = fs::read_to_string("/proc/self/smaps").ok().and_then(|maps| code_in(&maps)) else {
        return;
    };
    // SAFETY: the range is a private mapping of a file that nobody can write to, and none of its pages differs from the
    // file (a relocation's or a debugger's would be anonymous), so each comes back as it was (madvise(2)).
    let _ = unsafe { libc::madvise(code.start as *mut _, code.len(), libc::MADV_DONTNEED) };
}

/// Where this function's code is mapped, by `/proc/self/smaps` (proc_pid_smaps(5)): `FROM-TO r-xp OFFSET DEVICE INODE
/// PATH`, and lines like `Anonymous: 0 kB`. `None` if it could be written to, is no file, or has been changed.
fn code_in(maps: &str) -> Option<Range<usize>> {
    let here = code_in as fn(&str) -> Option<Range<usize>> as usize;
    let mut lines =
        maps.lines().skip_while(|line| !mapping(line).is_some_and(|mapping| mapping.contains(&here)));
    let first = lines.next()?;
    let (_, rest) = first.split_once(' ')?;
    let is_code = rest.starts_with("r-xp ") && rest.contains('/');
    let changed = lines
        .map_while(|line| mapping(line).is_none().then_some(line))
        .find_map(|line| line.strip_prefix("Anonymous:"))?;
    (is_code && changed.trim() == "0 kB").then(|| mapping(first))?
}

/// The range that a mapping's first line begins with.
fn mapping(line: &str) -> Option<Range<usize>> {
    let (from, to) = line.split_once(' ')?.0.split_once('-')?;
    Some(usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> Range<usize> {
        code_in(&fs::read_to_string("/proc/self/smaps").expect("readable")).expect("code is mapped")
    }

    /// What is resident of the mapping that holds this code, in kB.
    fn resident() -> u64 {
        let code = code();
        let smaps = fs::read_to_string("/proc/self/smaps").expect("readable");
        let mut lines = smaps.lines().skip_while(|line| mapping(line).as_ref() != Some(&code));
        let line = lines.find_map(|line| line.strip_prefix("Rss:")).expect("it is told");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    #[test]
    fn code_is_given_back_and_comes_again_when_it_is_used() {
        let all = code();
        // SAFETY: it only reads (madvise(2)).
        // Before Linux 5.14 it fails, and what the tests have used so far has to do.
        let _ = unsafe { libc::madvise(all.start as *mut _, all.len(), libc::MADV_POPULATE_READ) };
        let before = resident();
        give_back_code();
        // This goes on, and so do other tests.
        let after = resident();
        assert!(after < before / 2, "{before} kB, then {after} kB");
    }

    #[test]
    fn only_what_cannot_have_been_changed_is_let_go() {
        let here = code_in as fn(&str) -> Option<Range<usize>> as usize;
        let maps = |what: &str, anonymous: &str| {
            let before = "00001000-00002000 r--p 00000000 fe:00 7 /a\nAnonymous: 4 kB\nVmFlags: rd mr\n";
            let after = "7ffff000-7ffff100 r-xp 00000000 00:00 0 [vdso]\nAnonymous: 0 kB\n";
            format!("{before}{here:08x}-{:08x} {what}\nRss: 4 kB\n{anonymous}{after}", here + 4096)
        };
        let unchanged = "Anonymous:             0 kB\n";
        assert_eq!(code_in(&maps("r-xp 00001000 fe:00 7 /a b", unchanged)), Some(here..here + 4096));
        assert_eq!(code_in(&maps("r-xp 00001000 fe:00 7 /a", "Anonymous: 4 kB\n")), None);
        assert_eq!(code_in(&maps("r-xp 00001000 fe:00 7 /a", "")), None, "an older kernel");
        assert_eq!(code_in(&maps("rwxp 00001000 fe:00 7 /a", unchanged)), None);
        assert_eq!(code_in(&maps("r-xs 00001000 fe:00 7 /a", unchanged)), None);
        assert_eq!(code_in(&maps("r-xp 00000000 00:00 0 ", unchanged)), None);
        assert_eq!(code_in("nonsense\n"), None);
    }
}
