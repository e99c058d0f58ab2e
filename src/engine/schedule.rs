/// Shares a step's token budget out among sequences, given how many tokens of each are still to be computed, in the order
/// in which they came. Returns how many of each this step computes.
///
/// A sequence with one token left is decoding (or as good as): it gets it whatever the budget. Prompts share the rest, but
/// while anything decodes, no more than `chunk` tokens for each of them: a long prompt alone then slows the others down by
/// as much as `chunk` tokens cost, and where many prompts wait, they are read faster. Half of what prompts get goes to
/// those that came first, so that each is read in the end; half to those with the least left, so that a short prompt does
/// not wait for a long one. At least one token goes to a prompt, even under a budget that decoding uses up.
pub(super) fn schedule(left: &[usize], budget: usize, chunk: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = left.iter().map(|&left| left.min(1)).collect();
    let mut prompts: Vec<usize> = (0..left.len()).filter(|&i| left[i] > 1).collect();
    prompts.iter().for_each(|&i| counts[i] = 0);
    let decoding: usize = counts.iter().sum();
    let mut rest = budget.saturating_sub(decoding).max(1);
    if decoding > 0 {
        rest = rest.min(chunk.max(1).saturating_mul(prompts.len()));
    }
    let mut give = |prompts: &[usize], mut share: usize| {
        for &i in prompts {
            let more = share.min(left[i] - counts[i]);
            counts[i] += more;
            share -= more;
        }
        share
    };
    let first = rest.div_ceil(2);
    rest = rest - first + give(&prompts, first);
    prompts.sort_by_key(|&i| left[i]);
    give(&prompts, rest);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_never_waits_and_the_budget_holds(
            left in prop::collection::vec(0usize..300, 0..20), budget in 1usize..500, chunk in 1usize..100,
        ) {
            let counts = schedule(&left, budget, chunk);
            let decoding = left.iter().filter(|&&x| x == 1).count();
            let prompts = left.iter().filter(|&&x| x > 1).count();
            prop_assert!(left.iter().zip(&counts).all(|(&left, &count)| count <= left && (left != 1 || count == 1)));
            let total: usize = counts.iter().sum();
            prop_assert!(total <= budget.max(decoding + 1));
            let limit = if decoding > 0 { budget.min(decoding + chunk * prompts) } else { budget };
            prop_assert!(total <= limit.max(decoding + 1));
            // Work conserving: if some prompt was cut short, what prompts may have is used up.
            if left != counts {
                prop_assert!(total >= limit);
            }
            // The first prompt and the shortest get half each, if they have so many left.
            let share = limit.saturating_sub(decoding) / 2;
            if let Some(first) = left.iter().position(|&x| x > 1) {
                prop_assert!(counts[first] >= left[first].min(share.max(1)));
            }
            if let Some(shortest) = (0..left.len()).filter(|&i| left[i] > 1).min_by_key(|&i| left[i]) {
                prop_assert!(counts[shortest] >= left[shortest].min(share));
            }
        }
    }

    #[test]
    fn a_long_prompt_is_read_in_chunks_while_others_decode() {
        assert_eq!(schedule(&[1, 4096, 1], 512, 32), [1, 32, 1]);
        assert_eq!(schedule(&[1, 4096, 20], 512, 32), [1, 44, 20]);
        assert_eq!(schedule(&[4096, 20], 512, 32), [492, 20]);
        assert_eq!(schedule(&[0, 4096], 512, 32), [0, 512]);
    }
}
