// The first and the last part of a training step.
//
//     uint8 images, channel planes -> normalised float32, channels last        gradient descent on a flat run of numbers
//     r r r r  g g g g  b b b b    -> rgb rgb rgb rgb                          w, g, v are read once, w and v written once

#include "common.cuh"

// step.normalize. The order of operations is the same, so the bits are the same. A thread takes a pixel.

extern "C" __global__ void normalize_images(const unsigned char* images, float* x, int N, int HW, float mean_r, float mean_g,
                                            float mean_b, float std_r, float std_g, float std_b) {
  int q = blockIdx.x * T + threadIdx.x;
  if (q >= N * HW) return;
  const unsigned char* pixel = images + (size_t)(q / HW) * 3 * HW + q % HW;
  float* out = x + (size_t)q * 3;
  out[0] = (pixel[0] / 255.f - mean_r) / std_r;
  out[1] = (pixel[HW] / 255.f - mean_g) / std_g;
  out[2] = (pixel[2 * HW] / 255.f - mean_b) / std_b;
}

// step.descend. lr lies on the device where a recorded step is to be played with another one (null: lr_number). v is null
// without momentum. Where *skip is not 0, nothing moves (null: no such flag).

extern "C" __global__ void sgd(float* w, const float* g, float* v, int n, const double* lr, float lr_number, float momentum,
                               float weight_decay, const int* skip) {
  int i = blockIdx.x * T + threadIdx.x;
  if (i >= n || skip && *skip) return;
  float step = g[i] + weight_decay * w[i];
  if (v) step = v[i] = momentum * v[i] + step;
  w[i] -= (lr ? (float)*lr : lr_number) * step;
}

// step.unscale: g *= factor, and *overflowed = 1 where a result is infinite or no number; left alone else. All who write, write
// the same.

extern "C" __global__ void unscale(float* g, int n, float factor, int* overflowed) {
  for (int i = blockIdx.x * T + threadIdx.x; i < n; i += gridDim.x * T) {
    g[i] *= factor;
    if (!(fabsf(g[i]) <= 3.4028234e38f)) *overflowed = 1;
  }
}
