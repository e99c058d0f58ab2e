//! stand-in
use super::{Disjoint, Encoding, Pool};
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    w: Vec<f32>,
}
#[derive(Default)]
pub struct Activations {
    rows: usize,
    inputs: usize,
    x: Vec<f32>,
}
impl Matrix {
    pub fn new(e: Encoding, outputs: usize, inputs: usize, bytes: &[u8]) -> Result<Self, String> {
        let mut w = vec![0.0; outputs * inputs];
        e.decode(bytes, &mut w);
        Ok(Self { outputs, inputs, w })
    }
    pub fn convert(
        e: Encoding,
        outputs: usize,
        inputs: usize,
        bytes: &[u8],
        _to: Encoding,
    ) -> Result<Self, String> {
        Self::new(e, outputs, inputs, bytes)
    }
    pub fn row(&self, o: usize, to: &mut [f32]) {
        to.copy_from_slice(&self.w[o * self.inputs..][..self.inputs])
    }
    pub fn outputs(&self) -> usize {
        self.outputs
    }
    pub fn inputs(&self) -> usize {
        self.inputs
    }
    pub fn bytes(&self) -> usize {
        self.w.len() * 4
    }
    pub fn is_quantised(&self) -> bool {
        false
    }
}
impl Activations {
    pub fn fill(
        &mut self,
        pool: &Pool,
        rows: usize,
        inputs: usize,
        _q: bool,
        f: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.rows = rows;
        self.inputs = inputs;
        if self.x.len() < rows * inputs {
            self.x.resize(rows * inputs, 0.0)
        }
        let x = Disjoint::new(&mut self.x);
        pool.run(rows, &|r| f(r, unsafe { x.slice(r * inputs, inputs) }));
    }
}
pub fn product(pool: &Pool, weights: &[(&Matrix, usize)], x: &Activations, y: &mut [f32], stride: usize) {
    let y = Disjoint::new(y);
    pool.run(x.rows, &|r| {
        for (w, c) in weights {
            let y = unsafe { y.slice(r * stride + c, w.outputs) };
            let x = &x.x[r * x.inputs..][..x.inputs];
            for (y, w) in y.iter_mut().zip(w.w.chunks_exact(w.inputs)) {
                let mut l = [0f32; 16];
                for (x, w) in x.chunks(16).zip(w.chunks(16)) {
                    for i in 0..x.len() {
                        l[i] += x[i] * w[i];
                    }
                }
                *y = l.iter().sum();
            }
        }
    });
}
