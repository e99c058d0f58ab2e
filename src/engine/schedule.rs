/// Shares a step's token budget out among sequences, given how many tokens of each are still to be computed, in the order
/// in which they came. Returns how many of each this step computes.
///
/// A sequence with one token left is decoding (or as good as): it gets it whatever the budget, so no prompt, however long,
/// makes the others wait for more than one step. Prompts share the rest in chunks, first come first served; at least one
/// token goes to the first of them, so that it moves on even under a budget that decoding uses up.
pub(super) fn schedule(left: impl Iterator<Item = usize> + Clone, budget: usize) -> Vec<usize> {
    let decoding = left.clone().filter(|&tokens| tokens == 1).count();
    let mut rest = budget.saturating_sub(decoding).max(1);
    left.map(|tokens| {
        if tokens == 1 {
            return 1;
        }
        let chunk = tokens.min(rest);
        rest -= chunk;
        chunk
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_never_waits_and_the_budget_holds(
            left in prop::collection::vec(1usize..300, 0..20), budget in 1usize..500,
        ) {
            let counts = schedule(left.iter().copied(), budget);
            let decoding = left.iter().filter(|&&x| x == 1).count();
            prop_assert!(left.iter().zip(&counts).all(|(&left, &count)| count <= left && (left > 1 || count == 1)));
            prop_assert!(counts.iter().sum::<usize>() <= budget.max(decoding + 1));
            // Work conserving: if some prompt was cut short, the budget is used up.
            if left != counts {
                prop_assert!(counts.iter().sum::<usize>() >= budget);
            }
            // First come first served: once a prompt is cut short, none after it gets any.
            let mut prompts = left.iter().zip(&counts).filter(|(left, _)| **left > 1).skip_while(|(l, c)| l == c).skip(1);
            prop_assert!(prompts.all(|(_, &count)| count == 0));
        }
    }
}
