// Everything that is compiled, as one unit.
#include "elementwise.cu"
#include "norm.cu"
#include "paged_attention.cu"
#include "rows.cu"
#include "short_attention.cu"
#include "step.cu"
#include "training.cu"
#include "weights.cu"
