//! Uses whatever a file holds as a server would use a table. Shared by the fuzz target and by `tests/untrusted.rs`.

use std::path::Path;

use scone::table::{Table, describe, verify};

/// Opens the file and, if it passes for a table, looks f-grams up, reads rows and checks it. Nothing may panic or hang;
/// what `verify` calls good must also read without an error. Gives whether it was opened.
pub(crate) fn exercise(path: &Path) -> bool {
    let Ok(table) = Table::open(path) else { return false };
    let good = verify(&table, |_| {}).is_ok();
    let last = table.len() as u32 - 1;
    let tokens: Vec<u32> = (0..40).map(|i| i * i % 13).collect();
    let mut ranks: Vec<u32> =
        table.index().matches(&tokens, 0).into_iter().flatten().map(|m| m.rank).collect();
    ranks.extend([0, last / 2, last]);
    // A header may promise rows that are wider than anybody has memory for.
    if table.dim() <= 1 << 12 {
        let mut out = vec![0.0; ranks.len() * table.dim()];
        let read = table.gather(&ranks, &mut out);
        assert!(read.is_ok() || !good, "{read:?}");
    }
    for rank in [0, last, u32::MAX] {
        let tokens = table.index().tokens(rank);
        assert!(tokens.is_none_or(|tokens| tokens.len() <= table.policy().max_n));
        assert!(table.length(rank).is_none_or(|n| usize::from(n) <= table.policy().max_n));
        table.count(rank);
    }
    if table.len() <= 1 << 16 {
        describe(&table);
    }
    true
}
