use super::GroupError;

/// Which process of how many this is, and where they meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// This process's number, from 0.
    pub rank: usize,
    /// How many processes there are.
    pub world_size: usize,
    /// Where rank 0 waits for the others: `HOST:PORT`.
    pub coordinator: String,
}

/// What was said expressly.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// See [`Place::rank`].
    pub rank: Option<usize>,
    /// See [`Place::world_size`].
    pub world_size: Option<usize>,
    /// See [`Place::coordinator`].
    pub coordinator: Option<String>,
}

impl Place {
    /// A run in one process.
    pub const fn alone() -> Self {
        Self { rank: 0, world_size: 1, coordinator: String::new() }
    }

    /// What was given, and what is left open from the variables that launchers set: RANK, WORLD_SIZE, MASTER_ADDR and
    /// MASTER_PORT (torchrun, Kubeflow), SLURM_PROCID and SLURM_NTASKS.
    ///
    /// Without a meeting place the process is alone: Slurm's variables are there in every job, for programs that know
    /// nothing of each other too.
    ///
    /// # Errors
    /// Where something is missing or impossible.
    pub fn find(given: Given, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, GroupError> {
        let refuse = |why: &str| Err(GroupError::Place(why.to_owned()));
        let said = given.coordinator.is_some() || given.rank.is_some() || given.world_size.is_some();
        let number = |name: &str| match variable(name) {
            None => Ok(None),
            Some(text) => text.trim().parse::<usize>().map(Some).map_err(|_| {
                GroupError::Place(format!("the variable {name} is `{text}`, which is no number"))
            }),
        };
        if given.world_size == Some(1) && given.rank.unwrap_or(0) == 0 {
            return Ok(Self::alone());
        }
        let Some(coordinator) = given.coordinator.or(master(variable)?) else {
            return if said {
                refuse(
                    "where do the processes meet? Give --coordinator HOST:PORT, rank 0's machine and a free port",
                )
            } else {
                Ok(Self::alone())
            };
        };
        // Both from one launcher: a number of one among those of another means nothing.
        let found = match (given.rank, given.world_size) {
            (Some(rank), Some(world_size)) => Some((rank, world_size)),
            (None, None) => match (number("RANK")?, number("WORLD_SIZE")?) {
                (Some(rank), Some(world_size)) => Some((rank, world_size)),
                _ => number("SLURM_PROCID")?.zip(number("SLURM_NTASKS")?),
            },
            _ => return refuse("--rank and --world-size belong together"),
        };
        match found {
            None if said => refuse(
                "which of the processes is this? Give --rank and --world-size, or start it with a launcher that sets RANK \
                 and WORLD_SIZE, or SLURM_PROCID and SLURM_NTASKS",
            ),
            None => Ok(Self::alone()),
            Some((rank, world_size)) if rank >= world_size => Err(GroupError::Place(format!(
                "rank {rank} of {world_size} processes: ranks are 0 to {}",
                world_size.saturating_sub(1)
            ))),
            Some((rank, world_size)) => Ok(Self { rank, world_size, coordinator }),
        }
    }
}

/// Where torchrun and those who do as it does let the processes meet.
fn master(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, GroupError> {
    let (Some(host), Some(port)) = (variable("MASTER_ADDR"), variable("MASTER_PORT")) else {
        return Ok(None);
    };
    let Ok(port) = port.trim().parse::<u16>() else {
        return Err(GroupError::Place(format!("the variable MASTER_PORT is `{port}`, which is no port")));
    };
    // torchrun listens at the port itself where it says this; the next one is ours.
    let taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text == "True");
    let port = if taken { port.checked_add(1).unwrap_or(port - 1) } else { port };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Ok(Some(format!("{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(given: Given, variables: &[(&str, &str)]) -> Result<Place, String> {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Place::find(given, &variable).map_err(|e| e.to_string())
    }

    fn given(rank: Option<usize>, world_size: Option<usize>, coordinator: Option<&str>) -> Given {
        Given { rank, world_size, coordinator: coordinator.map(str::to_owned) }
    }

    fn place(rank: usize, world_size: usize, coordinator: &str) -> Result<Place, String> {
        Ok(Place { rank, world_size, coordinator: coordinator.to_owned() })
    }

    const SLURM: [(&str, &str); 2] = [("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4")];
    const TORCH: [(&str, &str); 4] =
        [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "node7"), ("MASTER_PORT", "29500")];

    #[test]
    fn a_launcher_says_which_process_this_is() {
        assert_eq!(find(Given::default(), &TORCH), place(1, 2, "node7:29500"));
        let elastic = [&TORCH[..], &SLURM[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(
            find(Given::default(), &elastic),
            place(1, 2, "node7:29501"),
            "torchrun comes before Slurm"
        );
        assert_eq!(find(given(None, None, Some("a:1")), &SLURM), place(3, 4, "a:1"));
        assert_eq!(find(given(Some(0), Some(8), Some("a:1")), &elastic), place(0, 8, "a:1"));
        let v6 = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "fd00::1"), ("MASTER_PORT", "1")];
        assert_eq!(find(Given::default(), &v6), place(0, 2, "[fd00::1]:1"));
    }

    #[test]
    fn without_a_meeting_place_it_is_alone() {
        for variables in [&[][..], &SLURM, &TORCH[..2], &TORCH[2..]] {
            assert_eq!(find(Given::default(), variables), Ok(Place::alone()), "{variables:?}");
        }
        assert_eq!(find(given(Some(0), Some(1), None), &TORCH), Ok(Place::alone()));
    }

    #[test]
    fn what_is_missing_or_impossible_is_named() {
        let refused = |given, variables: &[_], word: &str| {
            let error = find(given, variables).unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        refused(given(Some(0), Some(2), None), &SLURM, "--coordinator");
        refused(given(None, None, Some("a:1")), &[], "--rank");
        refused(given(Some(1), None, Some("a:1")), &SLURM, "--world-size");
        refused(given(Some(2), Some(2), Some("a:1")), &[], "0 to 1");
        refused(given(None, None, Some("a:1")), &[("RANK", "x"), ("WORLD_SIZE", "2")], "RANK");
        refused(Given::default(), &[("MASTER_ADDR", "a"), ("MASTER_PORT", "66000")], "MASTER_PORT");
    }
}
