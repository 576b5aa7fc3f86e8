//! One toy in every form of a checkpoint: each form must yield the same tensors, byte for byte.

use std::path::Path;

use files::{Checkpoint, Family, GgmlType};
use slotbank_toy::{Convention, Fixture, Layout, Role, TensorSpec, Toy, Types};

fn toy() -> Toy {
    use GgmlType as T;
    let types = Types {
        dense: T::Q8_0,
        experts: vec![
            [T::Q4_0, T::Q4_0, T::Q8_0],
            [T::IQ1_M, T::IQ2_XXS, T::Q6_K],
            [T::F16, T::BF16, T::F32],
        ],
    };
    Toy { mtp: true, stale_indexers: true, ..Toy::wide(types) }
}

/// Every tensor with its bytes.
type Contents = Vec<(TensorSpec, Vec<u8>)>;

fn contents(toy: &Toy) -> Contents {
    toy.tensors().into_iter().map(|spec| (spec.clone(), toy.bytes(&spec))).collect()
}

#[track_caller]
fn same_as_toy(path: &Path, toy: &Toy, contents: &Contents) {
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(checkpoint.architecture(), "glm-dsa");
    let families = [Family::Gate, Family::Up, Family::Down];
    let experts = u64::from(toy.config.n_routed_experts);
    for (spec, bytes) in contents {
        let Role::Expert(layer, family) = spec.role else {
            let tensor = checkpoint.tensor(&spec.name).unwrap_or_else(|| panic!("no {}", spec.name));
            assert_eq!((tensor.ty, &tensor.shape), (toy.type_of(spec), &spec.shape), "{}", spec.name);
            assert_eq!(checkpoint.read(&tensor.extent).expect("readable"), *bytes, "{}", spec.name);
            continue;
        };
        let tensor = checkpoint.expert(layer, families[family]).unwrap_or_else(|| panic!("no {}", spec.name));
        assert_eq!((tensor.ty, tensor.shape.as_slice()), (toy.type_of(spec), spec.shape.as_slice()));
        let n = bytes.len() / experts as usize;
        for e in 0..experts as usize {
            let read = checkpoint.read(&tensor.extent(e as u32)).expect("readable");
            assert!(read == bytes[e * n..(e + 1) * n], "{} expert {e} in {}", spec.name, path.display());
        }
    }
    assert_eq!(checkpoint.experts().len(), 3 * (toy.config.moe_layers().len() + usize::from(toy.mtp)));
}

#[test]
fn single_and_split_gguf() {
    let toy = toy();
    let contents = contents(&toy);
    let dir = tempfile::tempdir().expect("a temporary folder");
    toy.write(&dir.path().join("single.gguf"));
    same_as_toy(&dir.path().join("single.gguf"), &toy, &contents);
    let first = toy.write_split(dir.path(), "split", 3);
    same_as_toy(&first, &toy, &contents);
    same_as_toy(&dir.path().join("split-00003-of-00003.gguf"), &toy, &contents);
}

#[test]
fn packages_in_every_convention_and_layout_from_every_entry_point() {
    let toy = toy();
    let contents = contents(&toy);
    let layouts =
        [Layout::WholeTensor, Layout::ExpertMajor { stride: 1 }, Layout::ExpertMajor { stride: 4096 }];
    for convention in Convention::ALL {
        for layout in layouts {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let package = toy.write_package(dir.path(), convention, layout);
            for entry in package.entry_points() {
                same_as_toy(&entry, &toy, &contents);
            }
        }
    }
}

#[test]
fn metadata_without_a_schedule_has_no_schedule() {
    let key = "glm-dsa.attention.indexer.types";
    let with = Toy::from_fixture(&Fixture::named("share")).metadata();
    assert_eq!(with.bools(key).expect("bools").map(|v| v.len()), Some(7));
    assert!(Toy::from_fixture(&Fixture::named("groups")).metadata().get(key).is_none());
    assert!(Toy::from_fixture(&Fixture::named("million")).metadata().get(key).is_none());
}
