//! Processes, as threads of one: what they agree on, and how they fail.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Barrier;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::train::update::Moments;
use crate::train::{AdamW, Gradient, Gradients, OptimizerConfig, Parameters, RowGradient};

const LONG: Duration = Duration::from_secs(60);

/// Where it is waited for; long enough for threads to find each other.
const SHORT: Duration = Duration::from_secs(1);

/// An address that nobody listens at.
fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Runs `work` as every rank of a group of `world_size`; what it returns, by rank.
fn together<T: Send>(
    world_size: usize,
    timeout: Duration,
    work: impl Fn(Result<Mesh, GroupError>) -> T + Sync,
) -> Vec<T> {
    let coordinator = address();
    let place = |rank| Place { rank, world_size, coordinator: coordinator.clone() };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world_size)
            .map(|rank| (place(rank), &work))
            .map(|(place, work)| scope.spawn(move || work(Mesh::form(&place, timeout))))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Values of very different sizes, whose sum depends on its order.
fn values(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f32 + 1.7).sin() * 10f32.powi(((i * 7 + rank * 5) % 13) as i32 - 6)).collect()
}

#[test]
fn sums_are_those_of_the_tree_in_every_process() {
    for (world_size, len) in [(1, 5), (2, 0), (2, 1), (3, 2), (3, 1000), (4, 70_001), (6, 4099)] {
        let add = |a: f32, b: f32| Ok::<_, Infallible>(a + b);
        let all: Vec<Vec<f32>> = (0..world_size).map(|rank| values(rank, len)).collect();
        let expected: Vec<f32> = (0..len)
            .map(|i| {
                let mut sum = Pairwise::default();
                all.iter().for_each(|values| sum.push(values[i], add).unwrap());
                sum.finish(add).unwrap().unwrap()
            })
            .collect();
        for sum in together(world_size, LONG, |mesh| {
            let mut mesh = mesh.unwrap();
            let mut values = values(mesh.rank(), len);
            mesh.sum(&mut values).unwrap();
            values
        }) {
            assert!(sum == expected, "{world_size} processes, {len} values");
        }
        if world_size == 6 {
            let other: Vec<f32> = (0..len).map(|i| all.iter().map(|values| values[i]).sum()).collect();
            assert!(other != expected, "the order makes no difference: the test shows nothing");
        }
    }
}

#[test]
fn what_rank_0_has_and_what_anyone_says_is_known_to_all() {
    let heard = together(3, LONG, |mesh| {
        let mut mesh = mesh.unwrap();
        let mut bytes = vec![mesh.rank() as u8 + 7; 100_000];
        mesh.broadcast(&mut bytes).unwrap();
        let nobody = mesh.any(false).unwrap();
        let someone = mesh.any(mesh.rank() == 2).unwrap();
        mesh.barrier().unwrap();
        let same = mesh.agree("nothing", 5).is_ok();
        let error = mesh.agree("what they say", mesh.rank() as u32 / 2).unwrap_err().to_string();
        (bytes == vec![7; 100_000], nobody, someone, same, error)
    });
    let error = "rank 2 and rank 0 differ in what they say".to_owned();
    assert_eq!(heard, vec![(true, false, true, true, error); 3]);
}

#[test]
fn who_is_lost_is_named_by_all_others() {
    let errors = together(3, LONG, |mesh| {
        let mut mesh = mesh.unwrap();
        mesh.barrier().unwrap();
        // Gone, as a process that is killed.
        if mesh.rank() == 1 {
            None
        } else {
            Some(mesh.sum(&mut vec![1.0; 1_000_000]).unwrap_err().to_string())
        }
    });
    let named = errors.iter().flatten().filter(|error| error.contains("rank 1 is lost")).count();
    assert!(named >= 1 && errors.iter().flatten().count() == 2, "{errors:?}");
}

#[test]
fn who_hangs_is_given_up_in_time() {
    let given_up = Barrier::new(2);
    let errors = together(2, SHORT, |mesh| {
        let mut mesh = mesh.unwrap();
        mesh.barrier().unwrap();
        if mesh.rank() == 1 {
            given_up.wait();
            return String::new();
        }
        // More than the connection holds: sending waits too.
        let error = mesh.sum(&mut vec![1.0; 20_000_000]).unwrap_err().to_string();
        given_up.wait();
        error
    });
    assert!(errors[0].contains("rank 1 is lost: nothing was heard of it for 1 s"), "{errors:?}");
}

#[test]
fn who_does_something_else_is_found_out() {
    let errors = together(2, LONG, |mesh| {
        let mut mesh = mesh.unwrap();
        let len = 10 + mesh.rank() * 6;
        mesh.sum(&mut vec![0.0; len]).unwrap_err().to_string()
    });
    assert!(errors.iter().any(|error| error.contains("out of step")), "{errors:?}");
}

#[test]
fn strangers_are_passed_over_and_strays_refused() {
    let coordinator = address();
    let place = |rank, world_size| Place { rank, world_size, coordinator: coordinator.clone() };
    std::thread::scope(|scope| {
        let host = scope.spawn(|| Mesh::form(&place(0, 2), LONG).map(|mesh| mesh.world_size()));
        let mut stranger = loop {
            match TcpStream::connect(&coordinator) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let stray = Mesh::form(&place(1, 3), LONG).err().unwrap().to_string();
        assert!(stray.contains("waits for 2 processes, this one for 3"), "{stray}");
        assert_eq!(Mesh::form(&place(1, 2), LONG).unwrap().world_size(), 2);
        assert_eq!(host.join().unwrap().unwrap(), 2);
    });
}

#[test]
fn who_does_not_come_is_named() {
    let coordinator = address();
    let form = |rank| {
        let place = Place { rank, world_size: 3, coordinator: coordinator.clone() };
        Mesh::form(&place, SHORT).err().unwrap().to_string()
    };
    let [host, guest] = std::thread::scope(|scope| {
        let host = scope.spawn(|| form(0));
        let guest = form(2);
        [host.join().unwrap(), guest]
    });
    assert!(host.contains("only 2 of 3") && host.contains("rank 1 is missing"), "{host}");
    assert!(guest.contains("no answer from rank 0"), "{guest}");
    let taken = TcpListener::bind(&coordinator).unwrap();
    assert!(form(0).contains("cannot listen"));
    drop(taken);
    let place = Place { rank: 0, world_size: 2, coordinator: "nowhere".into() };
    assert!(Mesh::form(&place, SHORT).err().unwrap().to_string().contains("HOST:PORT"));
}

/// The group's part of a run's start: other weights and moments become those of rank 0.
#[test]
fn all_begin_with_the_weights_and_moments_of_rank_0() {
    let sums = together(2, LONG, |mesh| {
        let mut mesh = mesh.unwrap();
        let mut parameters = Parameters::new(mesh.rank() as u64, 0.5, &Device::Cpu);
        let shapes: [(&str, &[usize]); 2] = [("w.weight", &[30, 7]), ("norm.weight", &[9])];
        for (name, shape) in shapes {
            parameters.create("main", name, shape, 1).unwrap();
        }
        let mut optimizer = AdamW::new(&OptimizerConfig::default());
        if mesh.rank() == 0 {
            for (i, (name, var)) in parameters.iter().enumerate() {
                let (m, v) = (vec![i as f32 + 0.5; var.elem_count()], vec![0.25; var.elem_count()]);
                let moments = Moments::new(m, v, &Device::Cpu).unwrap();
                optimizer.moments.insert(name.to_owned(), moments);
            }
        }
        let before = checksum(&parameters).unwrap();
        assert!(mesh.agree("weights", before).is_err());
        share_parameters(&mut mesh, &parameters, &mut optimizer).unwrap();
        let rank = mesh.rank() as f32;
        let whole = |n| Tensor::new(vec![n as f32 + rank; n], &Device::Cpu).unwrap();
        // Of a table of four rows each process has read others.
        let (table, rows) =
            (Tensor::zeros((4, 1), DType::F32, &Device::Cpu).unwrap(), vec![1, 2 + rank as u32]);
        let rows = RowGradient::new(rows, &whole(2).reshape((2, 1)).unwrap(), &table).unwrap();
        let mut gradients = Gradients::from([
            ("b".to_owned(), Gradient::Whole(whole(4))),
            ("a".to_owned(), Gradient::Whole(whole(2))),
            ("c".to_owned(), Gradient::Rows(rows)),
        ]);
        sum_gradients(&mut mesh, &mut gradients).unwrap();
        let numbers = |sum: &Gradient| sum.whole().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let gradients: Vec<_> = gradients.values().map(numbers).collect();
        let moments = optimizer.moments.iter();
        let moments: BTreeMap<_, _> =
            moments.map(|(name, own)| (name.clone(), own.values().unwrap())).collect();
        (checksum(&parameters).unwrap(), moments, gradients, before)
    });
    let [(weights, moments, gradients, before), other] = &sums[..] else { panic!() };
    assert_eq!((weights, moments, gradients), (&other.0, &other.1, &other.2));
    assert_eq!(weights, before);
    assert_eq!(moments["main/w.weight"], (vec![1.5; 210], vec![0.25; 210]));
    assert_eq!(gradients, &[vec![5.0; 2], vec![9.0; 4], vec![0.0, 5.0, 2.0, 3.0]]);
}
