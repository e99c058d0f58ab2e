use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Storage, Tensor, Var, bail,
};

/// What [`recompute`] runs.
pub(super) type Function = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// `f(x)`, of which nothing but `x` and the result is kept for the backward pass: that runs `f` once more. Of a block of
/// a transformer this keeps a small part, for about a third more time (Chen et al., arXiv 1604.06174).
///
/// `f` must give the same each time, and depend on nothing that is trained but `x` and `parameters`, which are variables
/// or constants. Then the gradients are those of `f(x)` itself, bit for bit; only where other ops read `x` too may their
/// parts of its gradient be added in another order.
///
/// # Errors
/// Those of `f`; and where a parameter is itself computed from others that are trained.
pub fn recompute(x: &Tensor, parameters: &[&Tensor], f: Arc<Function>) -> Result<Tensor> {
    if !x.track_op() && !parameters.iter().any(|parameter| parameter.track_op()) {
        return f(x);
    }
    if parameters.iter().any(|parameter| parameter.track_op() && !parameter.is_variable()) {
        bail!("recompute: a parameter must be a variable or a constant");
    }
    let y = f(&leaf(x)?)?.detach();
    let gradients = Gradients::default();
    let mut joined = Tensor::zeros(1, x.dtype(), x.device())?;
    for (i, parameter) in parameters.iter().enumerate() {
        joined = joined.apply_op2(parameter, Join { i, gradients: gradients.clone() })?;
    }
    let parameters = parameters.iter().map(|&parameter| parameter.clone()).collect();
    x.apply_op2(&joined, Recompute { f, parameters, y: Mutex::new(Some(y)), gradients })
}

/// What a backward pass found, by parameter, on its way from the function's node to those of its parameters.
type Gradients = Arc<Mutex<Vec<Option<Tensor>>>>;

/// A copy of `x` where a graph of its own begins.
fn leaf(x: &Tensor) -> Result<Tensor> {
    let x = if x.track_op() { Var::from_tensor(&x.detach())?.into_inner() } else { x.clone() };
    Ok(x)
}

/// A node of two operands: `x`, and all parameters as [`Join`] makes them one; candle has no op of more than three.
struct Recompute {
    f: Arc<Function>,
    parameters: Vec<Tensor>,
    y: Mutex<Option<Tensor>>,
    gradients: Gradients,
}

impl Recompute {
    fn take(&self) -> Result<Tensor> {
        match self.y.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Of its own, from the first number on: the storage is what is handed on.
            Some(y) if y.layout().start_offset() == 0 => y.contiguous(),
            Some(y) => y.force_contiguous(),
            None => bail!("recompute: its result was taken already"),
        }
    }
}

impl CustomOp2 for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(
        &self,
        _x: &CpuStorage,
        _: &Layout,
        _joined: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.take()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, y.shape().clone())),
            _ => bail!("recompute: its result is not where its operands are"),
        }
    }

    fn cuda_fwd(
        &self,
        _x: &CudaStorage,
        _: &Layout,
        _joined: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let y = self.take()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, y.shape().clone())),
            _ => bail!("recompute: its result is not where its operands are"),
        }
    }

    fn bwd(
        &self,
        x: &Tensor,
        joined: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let leaf = leaf(x)?;
        let y = (self.f)(&leaf)?;
        let mut store = y.apply_op1(Follow { dy: dy.detach() })?.backward()?;
        let mut gradient = |of: &Tensor| -> Result<Option<Tensor>> {
            // A tensor that the result does not depend on has none, but candle waits for one.
            let tracked = of.track_op();
            tracked.then(|| store.remove(of).map_or_else(|| of.zeros_like(), Ok)).transpose()
        };
        let dx = gradient(&leaf)?;
        let gradients = self.parameters.iter().map(gradient).collect::<Result<_>>()?;
        *self.gradients.lock().unwrap_or_else(PoisonError::into_inner) = gradients;
        Ok((dx, joined.track_op().then(|| joined.zeros_like()).transpose()?))
    }
}

/// One more parameter for a function's node. It computes nothing; its backward pass hands the parameter its gradient.
struct Join {
    i: usize,
    gradients: Gradients,
}

impl CustomOp2 for Join {
    fn name(&self) -> &'static str {
        "recompute-parameter"
    }

    fn cpu_fwd(
        &self,
        joined: &CpuStorage,
        layout: &Layout,
        _parameter: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((joined.try_clone(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        joined: &CudaStorage,
        layout: &Layout,
        _parameter: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((joined.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        joined: &Tensor,
        _parameter: &Tensor,
        _result: &Tensor,
        dresult: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        let gradient = gradients.get_mut(self.i).and_then(Option::take);
        Ok((joined.track_op().then(|| dresult.clone()), gradient))
    }
}

/// A scalar whose gradient in its operand is `dy`: where candle's backward pass, which begins with a gradient of 1, is to
/// begin with another.
struct Follow {
    dy: Tensor,
}

impl CustomOp1 for Follow {
    fn name(&self) -> &'static str {
        "follow"
    }

    fn cpu_fwd(&self, y: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((y.device().zeros_impl(&().into(), y.dtype())?, ().into()))
    }

    fn cuda_fwd(&self, y: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((y.device().zeros_impl(&().into(), y.dtype())?, ().into()))
    }

    fn bwd(&self, _y: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.dy.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use candle_core::Device;

    use super::super::{add, rms_norm, swiglu};
    use super::*;

    fn numbers(shape: (usize, usize), seed: usize) -> Tensor {
        let numbers = (0..shape.0 * shape.1).map(|i| ((i * 37 + seed * 11) % 23) as f32 / 9.0 - 1.2);
        Tensor::from_vec(numbers.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    }

    /// `x + swiglu(norm(x) * a, x * b)`, which counts its runs.
    fn function(a: &Tensor, b: &Tensor, runs: &Arc<AtomicUsize>) -> Arc<Function> {
        let (a, b, runs) = (a.clone(), b.clone(), runs.clone());
        Arc::new(move |x| {
            runs.fetch_add(1, Ordering::Relaxed);
            let product = |x: &Tensor, w| super::super::linear::linear(x, w);
            let h = rms_norm(x, &numbers((1, 6), 9).flatten_all()?, 1e-5)?;
            add(x, &swiglu(&product(&h, &a)?, &product(x, &b)?)?)
        })
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn gradients_are_those_of_the_function_itself_whatever_of_it_is_trained() {
        for trained in [[true, true, true], [false, true, true], [true, false, false], [true, true, false]] {
            let [x, a, b] = [((5, 6), 1), ((6, 6), 2), ((6, 6), 3)].map(|(shape, seed)| numbers(shape, seed));
            let vars = [x, a, b].map(|x| Var::from_tensor(&x).unwrap());
            let [x, a, b] = [0, 1, 2].map(|i| match trained[i] {
                true => vars[i].as_tensor().clone(),
                false => vars[i].as_detached_tensor(),
            });
            let runs = Arc::new(AtomicUsize::new(0));
            let f = function(&a, &b, &runs);
            // What comes before and after is in the graph as well, and x is used twice.
            let before = x.affine(1.5, 0.1).unwrap();
            let beside = before.affine(-0.5, 0.0).unwrap();
            let after = |y: &Tensor| add(&beside, y).unwrap().sqr().unwrap().sum_all().unwrap();
            let direct = after(&f(&before).unwrap());
            let again = after(&recompute(&before, &[&a, &b], f.clone()).unwrap());
            assert_eq!(bits(&direct), bits(&again));
            let (direct, again) = (direct.backward().unwrap(), again.backward().unwrap());
            assert_eq!(runs.load(Ordering::Relaxed), 3, "once directly, once forward, once backward");
            for (var, trained) in vars.iter().zip(trained).filter(|(_, trained)| *trained) {
                let gradient = |store: &candle_core::backprop::GradStore| bits(store.get(var).unwrap());
                assert_eq!(gradient(&direct), gradient(&again), "{trained:?}");
                assert!(gradient(&direct).iter().any(|&bits| bits != 0));
            }
        }
    }

    #[test]
    fn nothing_of_the_function_stays_in_the_graph() {
        let vars = [((5, 6), 1), ((6, 6), 2), ((6, 6), 3)]
            .map(|(shape, seed)| Var::from_tensor(&numbers(shape, seed)).unwrap());
        let [x, a, b] = &vars;
        let runs = Arc::new(AtomicUsize::new(0));
        let f = function(a, b, &runs);
        let (direct, again) = (f(x).unwrap(), recompute(x, &[a, b], f.clone()).unwrap());
        // The result, x, and each parameter with the node that joins it.
        assert_eq!(again.sorted_nodes().len(), 6);
        assert!(direct.sorted_nodes().len() > 6);
        let fixed = vars.each_ref().map(Var::as_detached_tensor);
        let plain = recompute(&fixed[0], &[&fixed[1], &fixed[2]], function(&fixed[1], &fixed[2], &runs));
        assert!(!plain.unwrap().track_op(), "where nothing is trained there is no graph");
    }

    #[test]
    fn a_parameter_that_is_computed_is_refused() {
        let a = Var::from_tensor(&numbers((6, 6), 2)).unwrap();
        let computed = a.affine(2.0, 0.0).unwrap();
        let f = function(&computed, &computed, &Arc::default());
        assert!(recompute(&numbers((5, 6), 1), &[&computed], f).is_err());
    }
}
