//! Whatever path a client asks for, it has one spelling or is refused: what is normal stays as it is,
//! leads nowhere upwards, also to a reader that decodes slashes and backslashes and cuts off parameters,
//! and means what was asked for to one that decodes the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::fuzzing::normal_path;

fuzz_target!(|input: &str| {
    let asked = format!("/{input}");
    let Some(normal) = normal_path(&asked) else { return };
    assert_eq!(normal_path(&normal).as_ref(), Some(&normal), "{asked:?}");
    assert!(normal.starts_with('/') && !normal.contains("//") && !normal.contains('\\'), "{normal:?}");
    assert!(normal.len() <= asked.len() && !normal.bytes().any(|byte| byte.is_ascii_control()));
    let decoded = decode(&normal);
    let is_dots = |part: &[u8]| {
        let name = part.split(|byte| *byte == b';').next().unwrap_or_default();
        name == b"." || name == b".."
    };
    assert!(!decoded.split(|byte| matches!(byte, b'/' | b'\\')).any(is_dots), "{normal:?}");
    // A decoder finds the slashes that are there, and those that were encoded.
    let slashes = count(normal.as_bytes(), b'/') + normal.matches("%2F").count();
    assert_eq!(count(&decoded, b'/'), slashes, "{normal:?}");
});

/// As a server would, and what encodes nothing stays.
fn decode(path: &str) -> Vec<u8> {
    let (path, mut decoded, mut index) = (path.as_bytes(), Vec::new(), 0);
    while index < path.len() {
        let digits = path.get(index + 1..index + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if path[index] == b'%' => {
                decoded.push(byte);
                index += 3;
            }
            _ => {
                decoded.push(path[index]);
                index += 1;
            }
        }
    }
    decoded
}

fn count(bytes: &[u8], wanted: u8) -> usize {
    bytes.iter().filter(|byte| **byte == wanted).count()
}
