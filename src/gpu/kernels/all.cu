// Everything that is compiled, as one unit.
#include "attention.cu"
#include "elementwise.cu"
#include "norm.cu"
#include "rows.cu"
#include "short_attention.cu"
#include "training.cu"
