//! Walks the table: what holds for every format.

use super::*;

#[test]
fn ids_and_names_are_unique() {
    for (i, a) in FORMATS.iter().enumerate() {
        assert_eq!(format(a.id).unwrap().name, a.name);
        assert!(FORMATS[i + 1..].iter().all(|b| a.id != b.id && a.name != b.name));
    }
}
