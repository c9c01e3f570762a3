//! Memory that nobody uses, given back to the system: what the allocators keep, and the part of the program that only
//! its start needed.
//!
//! Who judges by what the system counts has to have it given back first: after a burst tens of megabytes stay this
//! process's, whatever is cut off. Of the program, an idle node uses a fifth of what was mapped while it started.
#![expect(unsafe_code, reason = "malloc_trim(3), mi_collect and madvise(2) are to be had from C only")]

use std::fs;
use std::ops::Range;

/// Gives back what is free, and holds up who wants memory meanwhile: a few milliseconds where 60 MB had been used and
/// most of them freed.
pub(crate) fn give_back() {
    // SAFETY: it takes no pointer, and any thread may call it at any time.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
    // C libraries (cryptography, zstd) have the system's allocator; others than glibc's do so by themselves.
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and no pointer, and any thread may call it at any time (malloc_trim(3), MT-Safe).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the pages that hold the program's code. Those that are used come back from the file with their next use,
/// a few hundred at most; those of the start do not.
pub(crate) fn give_back_code() {
    let Some(code) = fs::read_to_string("/proc/self/maps").ok().and_then(|maps| code_in(&maps)) else {
        return;
    };
    // SAFETY: the range is a private mapping of a file that is executable and not writable, so none of its pages was
    // ever changed, and each comes back as it was (madvise(2), MADV_DONTNEED).
    let _ =
        unsafe { rustix::mm::madvise(code.start as *mut _, code.len(), rustix::mm::Advice::LinuxDontNeed) };
}

/// Where this function's code is mapped, by the lines of `/proc/self/maps` (proc_pid_maps(5)): `FROM-TO r-xp OFFSET
/// DEVICE INODE PATH`. `None` if that could be written to, or is no file.
fn code_in(maps: &str) -> Option<Range<usize>> {
    let here = code_in as fn(&str) -> Option<Range<usize>> as usize;
    let mapping = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        range.contains(&here).then_some((range, rest.starts_with("r-xp ") && rest.contains('/')))
    };
    let (range, is_code) = maps.lines().find_map(mapping)?;
    is_code.then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is resident of the mapping that holds this code, in kB.
    fn resident() -> u64 {
        let code =
            code_in(&fs::read_to_string("/proc/self/maps").expect("readable")).expect("code is mapped");
        let smaps = fs::read_to_string("/proc/self/smaps").expect("readable");
        let mapping = smaps.split_once(&format!("{:x}-{:x} ", code.start, code.end)).expect("the same").1;
        let line = mapping.lines().find_map(|line| line.strip_prefix("Rss:")).expect("it is told");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    #[test]
    fn code_is_given_back_and_comes_again_when_it_is_used() {
        // Much is used once: all of what other tests brought in, and this.
        let text = toml::to_string(&toml::Table::from_iter([("key".to_owned(), 1.into())])).expect("text");
        let before = resident();
        give_back_code();
        let after = resident();
        assert!(after < before / 2, "{before} kB, then {after} kB");
        assert_eq!(
            text,
            toml::to_string(&toml::Table::from_iter([("key".to_owned(), 1.into())])).expect("text")
        );
    }

    #[test]
    fn only_what_cannot_have_been_changed_is_let_go() {
        let here = code_in as fn(&str) -> Option<Range<usize>> as usize;
        let line =
            |what: &str| format!("1000-2000 r--p 00000000 fe:00 7 /a\n{:x}-{:x} {what}\n", here, here + 4096);
        assert_eq!(code_in(&line("r-xp 00001000 fe:00 7 /a")), Some(here..here + 4096));
        assert_eq!(code_in(&line("rwxp 00001000 fe:00 7 /a")), None);
        assert_eq!(code_in(&line("r-xs 00001000 fe:00 7 /a")), None);
        assert_eq!(code_in(&line("r-xp 00000000 00:00 0 ")), None);
        assert_eq!(code_in("nonsense\n"), None);
    }
}
