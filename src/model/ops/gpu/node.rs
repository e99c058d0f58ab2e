use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::Output;

/// The gradients of so many operands, where they are wanted.
pub(super) type Gradients<const N: usize> = [Option<Tensor>; N];

/// A finished result and its way back: operands, result and the result's gradient give the operands' gradients.
struct Node<F> {
    name: &'static str,
    result: Mutex<Option<(Storage, Shape)>>,
    backward: F,
}

/// Puts a result into the graph of its operands, one to three. `backward` is given operands, result and gradient, the
/// gradient contiguous.
pub(super) fn node<const N: usize>(
    name: &'static str,
    operands: [&Tensor; N],
    result: Output,
    backward: impl Fn([&Tensor; N], &Tensor, &Tensor) -> Result<Gradients<N>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if operands.iter().all(|operand| !operand.track_op()) {
        return Ok(result.into_tensor());
    }
    let node = Node { name, result: Mutex::new(Some(result.into_storage())), backward };
    match operands[..] {
        [x] => x.apply_op1(Of::<N, _>(node)),
        [x, y] => x.apply_op2(y, Of::<N, _>(node)),
        [x, y, z] => x.apply_op3(y, z, Of::<N, _>(node)),
        _ => bail!("{name}: a node of {N} operands"),
    }
}

struct Of<const N: usize, F>(Node<F>);

impl<const N: usize, F> Of<N, F>
where
    F: Fn([&Tensor; N], &Tensor, &Tensor) -> Result<Gradients<N>>,
{
    fn take(&self) -> Result<(Storage, Shape)> {
        match self.0.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => bail!("{}: its result was taken already", self.0.name),
        }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("{}: its result is not where its operands are", self.0.name),
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("{}: its result is not where its operands are", self.0.name),
        }
    }

    fn back(&self, operands: &[&Tensor], y: &Tensor, dy: &Tensor) -> Result<Gradients<N>> {
        let Ok(operands) = operands.try_into() else { bail!("{}: not {N} operands", self.0.name) };
        (self.0.backward)(operands, y, &dy.detach().contiguous()?)
    }
}

type Forward<S> = Result<(S, Shape)>;

impl<const N: usize, F> CustomOp1 for Of<N, F>
where
    F: Fn([&Tensor; N], &Tensor, &Tensor) -> Result<Gradients<N>> + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Forward<CpuStorage> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Forward<CudaStorage> {
        self.cuda()
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.back(&[x], y, dy)?.into_iter().next().flatten())
    }
}

impl<const N: usize, F> CustomOp2 for Of<N, F>
where
    F: Fn([&Tensor; N], &Tensor, &Tensor) -> Result<Gradients<N>> + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Forward<CpuStorage> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Forward<CudaStorage> {
        self.cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.back(&[a, b], y, dy)?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten()))
    }
}

impl<const N: usize, F> CustomOp3 for Of<N, F>
where
    F: Fn([&Tensor; N], &Tensor, &Tensor) -> Result<Gradients<N>> + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Forward<CpuStorage> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Forward<CudaStorage> {
        self.cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.back(&[a, b, c], y, dy)?.into_iter();
        let mut next = || gradients.next().flatten();
        Ok((next(), next(), next()))
    }
}
