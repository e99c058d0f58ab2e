//! Rows that a GPU reads by itself against those that the table gives.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::*;
use crate::gpu::{emulator, testing};
use crate::model::gpu_transformer::tests::{run, runtime};
use crate::model::ops::gpu::on_gpu;
use crate::model::{ModelDirectory, Piece};
use crate::table::{Placement, RowFormat, quantize, testing as tables};

#[test]
fn rows_are_those_of_the_table_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let set = tables::set(400, 5);
    let formats = RowType::ALL.into_iter().flat_map(|row_type| {
        let formats = [(1, 1), (15, 1), (33, 4), (64, 1), (100, 16), (64, 64)];
        formats.map(|(dim, align)| RowFormat { align, ..RowFormat::packed(row_type, dim) })
    });
    for (i, format) in formats.enumerate() {
        let path = directory.path().join(i.to_string());
        tables::write_as(&path, format, &set);
        let table = Arc::new(Table::open(&path).unwrap());
        let last = table.len() as u32 - 1;
        let ranks: Vec<u32> = (0..50).map(|i| (i * 7919) % (last + 1)).chain([last, 0, last, 0]).collect();
        let mut expected = vec![0.0; ranks.len() * format.dim];
        table.gather(&ranks, &mut expected).unwrap();
        for gpu in testing::gpus() {
            for place in [GpuPlace::Device, GpuPlace::Host] {
                let held = GpuTable::load(&*gpu, &table, place).unwrap();
                assert!(held.is_of(&table));
                let y = gpu.alloc(4 * expected.len()).unwrap();
                // Fewer first, so that there is more to come than there was room for.
                for ranks in [&ranks[..3], &ranks] {
                    let len = ranks.len() * format.dim;
                    let there = testing::indices(&*gpu, ranks);
                    let to = y.of(Type::F32).part(0, len).unwrap();
                    held.read(&*gpu, (ranks, there.of(Type::U32)), to).unwrap();
                    let found = testing::read(&*gpu, y.of(Type::F32).part(0, len).unwrap());
                    let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{format:?} {place:?}");
                }
                let (two, to) = ([0, last + 1], y.of(Type::F32).part(0, 2 * format.dim).unwrap());
                let there = testing::indices(&*gpu, &two);
                let beyond = held.read(&*gpu, (&two, there.of(Type::U32)), to);
                assert!(beyond.unwrap_err().to_string().contains("row"));
            }
        }
    }
}

/// The model in the repository, wherever its rows are: the same logits, also when another file takes the table's place, one that is
/// too large too.
#[test]
fn a_model_reads_the_table_where_it_is_and_where_the_next_one_is() {
    let directory = ModelDirectory::open(Path::new("model_cards/default")).unwrap();
    let steps = [vec![(0, 40)], vec![(0, 1), (1, 12)], vec![(0, 1), (1, 1)]];
    let text = "The old man looked at the sea, and then he said that he would not go to the house again until the end of \
                the year; for it was in the middle of the night that she had been seen there for the first time.";
    let tokens = directory.tokenizer().encode(text).unwrap();
    let tokens = [tokens.clone(), tokens[5..].to_vec(), Vec::new()];
    let open = |placement, device: &Device| {
        let live = directory.live_table(None, placement, &mut |_, _| ()).unwrap();
        directory.load_with(live, &runtime(57 * 16, None, device))
    };
    let mut expected = on_gpu(|device| open(Placement::default(), device)).unwrap();
    let expected = on_gpu(|_| run(&mut expected, &tokens, &steps));
    let scratch = tempfile::tempdir().unwrap();
    for place in [GpuPlace::Device, GpuPlace::Host] {
        let refused = open(Placement::Gpu(place), &Device::Cpu).err().unwrap().to_string();
        assert!(refused.contains("--table-mode ram"), "{refused}");
        let mut model = on_gpu(|device| open(Placement::Gpu(place), device)).unwrap();
        let live = Arc::clone(model.embedding().live_table().unwrap());
        let mut again = |what: &str| {
            let read = || {
                let now = live.get().metrics().snapshot();
                now.rows_memory + now.rows_disk
            };
            let before = read();
            assert!(run(&mut model, &tokens, &steps) == expected, "{place:?}, {what}");
            assert!(read() > before + 20, "{place:?}, {what}: not counted");
        };
        again("as it was opened");
        live.reload(None).unwrap();
        again("exchanged");
        if testing::real().is_none() && place == GpuPlace::Device {
            live.reload(None).unwrap();
            emulator::with_memory(1 << 20, || again("with no room for it"));
            again("the one that did not fit");
            // A larger one is held where more is free than a step needs.
            let larger = scratch.path().join("larger");
            let dim = live.get().dim();
            quantize(&live.get(), &larger, RowFormat::packed(RowType::F16, dim), &mut |_| ()).unwrap();
            for (free, is_held) in [(1 << 30, false), (3 << 30, true)] {
                live.reload(Some(&larger)).unwrap();
                emulator::with_memory(free, || run(&mut model, &tokens, &steps));
                assert_eq!(model.holds_table(), is_held, "{free} bytes free");
                live.reload(Some(Path::new("model_cards/default/table.safetensors"))).unwrap();
                emulator::with_memory(3 << 30, || run(&mut model, &tokens, &steps));
            }
            // One whose rows are gathered by the CPU and whose file is changed fails, and leaves nothing to the next.
            let other = scratch.path().join("other");
            std::fs::copy("model_cards/default/table.safetensors", &other).unwrap();
            live.reload(Some(&other)).unwrap();
            emulator::with_memory(1 << 20, || {
                assert!(run(&mut model, &tokens, &steps) == expected, "another with no room");
            });
            std::fs::File::options().append(true).open(&other).unwrap().set_len(1 << 20).unwrap();
            let piece = Piece { tokens: &tokens[0][..40], past: 0, blocks: &[0, 1, 2], wanted: 1 };
            assert!(model.forward(&[piece], &mut Vec::new()).is_err());
            live.reload(Some(Path::new("model_cards/default/table.safetensors"))).unwrap();
            assert!(run(&mut model, &tokens, &steps) == expected, "after one that failed");
        }
    }
    if testing::real().is_none() {
        let error = emulator::with_memory(10 << 20, || {
            on_gpu(|device| open(Placement::Gpu(GpuPlace::Device), device))
        });
        let error = error.err().unwrap().to_string();
        assert!(error.contains("--table-mode"), "{error}");
    }
    let mut without = directory.load_with(None, &runtime(57 * 16, None, &Device::Cpu)).unwrap();
    assert!(without.embedding().table().is_none() && run(&mut without, &tokens, &steps) != expected);
}
