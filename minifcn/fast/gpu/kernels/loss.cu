// Softmax and negative log-likelihood of every pixel: loss.softmax_nll and its gradient. A thread takes one pixel, whose K
// logits lie side by side:
//
//     pixel 0   c0 c1 c2 ...       top = max_c x_c, rest = log sum_c exp(x_c - top): kept apart, a sum of 1e9 and 1 loses the 1
//     pixel 1   c0 c1 c2 ...       nll = top - x_target + rest
//     pixel 2   c0 c1 c2 ...       the second walk finds the logits in the cache

#include "common.cuh"

extern "C" __global__ void softmax_nll(const float* x, const long long* target, float* nll, float* top, float* rest,
                                       int pixels, int K) {
  int q = blockIdx.x * T + threadIdx.x;
  if (q >= pixels) return;
  const float* logits = x + (size_t)q * K;
  float largest = logits[0], sum = 0.f;
  for (int c = 1; c < K; c++) largest = fmaxf(largest, logits[c]);
  for (int c = 0; c < K; c++) sum += expf(logits[c] - largest);
  top[q] = largest, rest[q] = logf(sum);
  nll[q] = largest - logits[target[q]] + logf(sum);
}

// gx_c = g (exp(x_c - top - rest) - [c == target]), exactly 0 where g is 0.

extern "C" __global__ void softmax_nll_grad(const float* g, const float* x, const long long* target, const float* top,
                                            const float* rest, float* gx, int pixels, int K) {
  int q = blockIdx.x * T + threadIdx.x;
  if (q >= pixels) return;
  float scale = g[q], largest = top[q], logarithm = rest[q];
  int t = (int)target[q];
  for (int c = 0; c < K; c++) {
    size_t at = (size_t)q * K + c;
    gx[at] = scale == 0.f ? 0.f : scale * (expf(x[at] - largest - logarithm) - (c == t ? 1.f : 0.f));
  }
}
