use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::gemm::{self, Matrix};
#[cfg(any(feature = "cuda", test))]
use super::gpu;
use super::panels::Panels;
use super::slices::{contiguous, elements, output, wanted};

/// The weight `[outputs, inputs]` of a linear layer, as Hugging Face stores it.
///
/// A weight that is being trained goes through the gemm crate. A fixed one goes through `Panels`, whose order of
/// summation does not depend on the batch, so that what is served for one sequence is the same, bit for bit, whatever
/// runs beside it.
pub struct Linear(Form);

enum Form {
    /// As it came. A trainer may change it in place, so its panels are made anew for each product.
    Tensor(Tensor),
    /// For good: the panels are all that is kept.
    Panels(Panels),
}

impl Linear {
    /// A weight that may still change.
    pub fn new(weight: Tensor) -> Self {
        Self(Form::Tensor(weight))
    }

    /// The same weight for good, with its panels made once. The tensor is let go: unless it is used elsewhere, the
    /// weight takes no more memory than before (its outputs are filled up to a multiple of 32). One on another device
    /// than the CPU is left as it is.
    ///
    /// # Errors
    /// Where the weight is being trained.
    pub fn fixed(self) -> Result<Self> {
        let Form::Tensor(weight) = &self.0 else { return Ok(self) };
        if weight.track_op() {
            bail!("a weight that is being trained cannot be fixed");
        }
        #[cfg(any(feature = "cuda", test))]
        if gpu::gpu_of(weight.device())?.is_some() {
            return Ok(self);
        }
        let (outputs, inputs) = weight.dims2()?;
        let panels = Panels::new(&elements(weight)?.read()?, outputs, inputs);
        Ok(Self(Form::Panels(panels)))
    }

    /// The weight, unless it was [fixed](Linear::fixed).
    pub(crate) fn weight(&self) -> Option<&Tensor> {
        match &self.0 {
            Form::Tensor(weight) => Some(weight),
            Form::Panels(_) => None,
        }
    }

    /// `x * weight^T` for `x` `[tokens, inputs]`.
    ///
    /// # Errors
    /// Where `x` has another width, or is being trained and the weight was [fixed](Linear::fixed).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.0 {
            Form::Tensor(weight) => linear(x, weight),
            Form::Panels(_) if x.track_op() => bail!("a fixed weight passes no gradient on"),
            Form::Panels(panels) => x.apply_op1_no_bwd(panels),
        }
    }
}

impl CustomOp1 for Panels {
    fn name(&self) -> &'static str {
        "linear-fixed"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, k) = layout.shape().dims2()?;
        if k != self.inputs() {
            bail!("linear: {k} features meet a weight for {}", self.inputs());
        }
        Ok(output(self.product(contiguous(storage, layout)?), (tokens, self.outputs())))
    }
}

/// `x * weight^T`: `x` is `[tokens, in]`, `weight` `[out, in]`.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    #[cfg(any(feature = "cuda", test))]
    if let Some(gpu) = gpu::gpu_of(x.device())? {
        return gpu::linear(&*gpu, x, weight);
    }
    x.apply_op2(weight, Product { trained: weight.track_op() })
}

struct Product {
    trained: bool,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let ((tokens, k), (features, k_w)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        if k != k_w {
            bail!("linear: {k} features meet a weight for {k_w}");
        }
        if !self.trained {
            return Ok(output(Panels::new(w, features, k).product(x), (tokens, features)));
        }
        let mut y = vec![0f32; tokens * features];
        let (x, w) = (Matrix::new(x, tokens, k, k), Matrix::new(w, features, k, k));
        gemm::gemm(&mut y, features, gemm::Put::Replace, x, w.t(), 1.0, true);
        Ok(output(y, (tokens, features)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x_e, w_e, dy_e) = (elements(x)?, elements(weight)?, elements(dy)?);
        let (xs, w, dys) = (x_e.read()?, w_e.read()?, dy_e.read()?);
        let ((tokens, k), features) = (x.dims2()?, weight.dim(0)?);
        let (xs, w) = (Matrix::new(&xs, tokens, k, k), Matrix::new(&w, features, k, k));
        let dys = Matrix::new(&dys, tokens, features, features);
        let dx = wanted(x, || {
            let mut dx = vec![0f32; tokens * k];
            gemm::gemm(&mut dx, k, gemm::Put::Replace, dys, w, 1.0, true);
            dx
        })?;
        let dw = wanted(weight, || {
            let mut dw = vec![0f32; features * k];
            gemm::gemm(&mut dw, k, gemm::Put::Replace, dys.t(), xs, 1.0, true);
            dw
        })?;
        Ok((dx, dw))
    }
}
