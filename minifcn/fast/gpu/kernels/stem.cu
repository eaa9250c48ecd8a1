// The stem's batch norm, ReLU and max-pooling (3 x 3, stride 2, padding 1) in one sweep, without ever writing the map between
// them: at half the size of the image it is the largest of the network.
//
//     x  . . . . .      a thread takes one output pixel, normalises and rectifies the nine of its window, and keeps the largest
//        . . . . .      and the number of its tap; of equals the first in row-major order. Where the largest is 0, no gradient
//        . . . . .      passes, whichever tap it was.
//
// Backward, gz of a pixel is the sum of gy over the windows that it won (4 at most). Its sums over the map are sums over
// windows:
//
//     gb = sum over windows of g        gw = sum over windows of g xhat(winner)        g = gy where y > 0
//
// so the first sweep reads the windows and their winners, the second each pixel once; gz itself is never written.

#include "common.cuh"
#include "sums.cuh"

__device__ __forceinline__ float rectified(float value) { return value < 0.f ? 0.f : value; }      // a NaN stays a NaN

template <int V>
__device__ __forceinline__ void norm_relu_pool(const float* x, const float* mean, const float* inv_std, const float* w,
                                               const float* b, float* y, unsigned char* tap, int H, int W, int C, int OH,
                                               int OW) {
  int q = (blockIdx.y * T + threadIdx.x) * V;
  if (q >= OW * C) return;
  int c = q % C, top = (int)(blockIdx.x % OH) * 2 - 1, left = q / C * 2 - 1, n = blockIdx.x / OH, winner[V];
  const Channels<V> center(mean + c), sharp(inv_std + c), scale(w + c), shift(b + c);
  Channels<V> best;
#pragma unroll
  for (int e = 0; e < V; e++) best.v[e] = MINUS_INFINITY, winner[e] = 0;
#pragma unroll
  for (int k = 0; k < 9; k++) {
    int h = top + k / 3, s = left + k % 3;
    if (h < 0 || h >= H || s < 0 || s >= W) continue;
    Channels<V> pixel(x + (((size_t)n * H + h) * W + s) * C + c);
#pragma unroll
    for (int e = 0; e < V; e++) {
      float value = rectified((pixel.v[e] - center.v[e]) * (scale.v[e] * sharp.v[e]) + shift.v[e]);
      if (value > best.v[e]) winner[e] = k;
      if (value > best.v[e] || value != value) best.v[e] = value;
    }
  }
  size_t out = (size_t)blockIdx.x * OW * C + q;
  best.store(y + out);
#pragma unroll
  for (int e = 0; e < V; e++) tap[out + e] = (unsigned char)winner[e];
}

extern "C" __global__ void norm_relu_pool_1(const float* x, const float* mean, const float* inv_std, const float* w,
                                            const float* b, float* y, unsigned char* tap, int H, int W, int C, int OH, int OW) {
  norm_relu_pool<1>(x, mean, inv_std, w, b, y, tap, H, W, C, OH, OW);
}

extern "C" __global__ void norm_relu_pool_4(const float* x, const float* mean, const float* inv_std, const float* w,
                                            const float* b, float* y, unsigned char* tap, int H, int W, int C, int OH, int OW) {
  norm_relu_pool<4>(x, mean, inv_std, w, b, y, tap, H, W, C, OH, OW);
}

// The sums over windows, as in norm.cu: a block takes groups of channels and every (slabs * lanes)-th window ->
// partial[slab][c].

template <int V>
__device__ __forceinline__ void norm_relu_pool_sums(const float* gy, const float* y, const unsigned char* tap, const float* x,
                                                    const float* mean, const float* inv_std, float* partial, int windows,
                                                    int H, int W, int C, int OH, int OW) {
  Place at(C, V);
  int c = at.channel(V);
  float b[V] = {}, w[V] = {};
  if (c < C) {
    const Channels<V> center(mean + c);
    for (int m = blockIdx.y * at.lanes + at.lane; m < windows; m += gridDim.y * at.lanes) {
      size_t k = (size_t)m * C + c;
      int top = m / OW % OH * 2 - 1, left = m % OW * 2 - 1, n = m / OW / OH;
      Channels<V> g(gy + k), passed(y + k);
#pragma unroll
      for (int e = 0; e < V; e++) {
        float one = passed.v[e] > 0.f ? g.v[e] : 0.f;
        int h = top + tap[k + e] / 3, s = left + tap[k + e] % 3;
        h = min(max(h, 0), H - 1), s = min(max(s, 0), W - 1);              // a window of NaN has no winner: anywhere inside
        b[e] += one, w[e] += one * (x[(((size_t)n * H + h) * W + s) * C + c + e] - center.v[e]);
      }
    }
  }
  add_lanes<V>(at, b, w, inv_std, partial, C);
}

extern "C" __global__ void norm_relu_pool_sums_1(const float* gy, const float* y, const unsigned char* tap, const float* x,
                                                 const float* mean, const float* inv_std, float* partial, int windows, int H,
                                                 int W, int C, int OH, int OW) {
  norm_relu_pool_sums<1>(gy, y, tap, x, mean, inv_std, partial, windows, H, W, C, OH, OW);
}

extern "C" __global__ void norm_relu_pool_sums_4(const float* gy, const float* y, const unsigned char* tap, const float* x,
                                                 const float* mean, const float* inv_std, float* partial, int windows, int H,
                                                 int W, int C, int OH, int OW) {
  norm_relu_pool_sums<4>(gy, y, tap, x, mean, inv_std, partial, windows, H, W, C, OH, OW);
}

// The pixels: gx = w inv_std (g - gb/M - xhat gw/M), g from the windows that the pixel won. M: pixels of the map.

template <int V>
__device__ __forceinline__ void norm_relu_pool_apply(const float* gy, const float* y, const unsigned char* tap, const float* x,
                                                     const float* w, const float* mean, const float* inv_std, const float* gw,
                                                     const float* gb, float* gx, int H, int W, int C, int OH, int OW, float M) {
  int q = (blockIdx.y * T + threadIdx.x) * V;
  if (q >= W * C) return;
  int c = q % C, r = blockIdx.x % H + 1, s = q / C + 1, n = blockIdx.x / H, i1 = last_window(r, 2, OH), j1 = last_window(s, 2,
      OW);
  float g[V] = {};
  for (int i = first_window(r, 2, 2); i <= i1; i++)
    for (int j = first_window(s, 2, 2); j <= j1; j++) {
      size_t at = (((size_t)n * OH + i) * OW + j) * C + c;
      const int here = (r - 2 * i) * 3 + s - 2 * j;
      Channels<V> given(gy + at), passed(y + at);
#pragma unroll
      for (int e = 0; e < V; e++)
        if (tap[at + e] == here && passed.v[e] > 0.f) g[e] += given.v[e];
    }
  size_t at = (size_t)blockIdx.x * W * C + q;
  Channels<V> pixel(x + at);
#pragma unroll
  for (int e = 0; e < V; e++) {
    float sharp = inv_std[c + e], xhat = (pixel.v[e] - mean[c + e]) * sharp;
    pixel.v[e] = w[c + e] * sharp * (g[e] - gb[c + e] / M - xhat * (gw[c + e] / M));
  }
  pixel.store(gx + at);
}

extern "C" __global__ void norm_relu_pool_apply_1(const float* gy, const float* y, const unsigned char* tap, const float* x,
                                                  const float* w, const float* mean, const float* inv_std, const float* gw,
                                                  const float* gb, float* gx, int H, int W, int C, int OH, int OW, float M) {
  norm_relu_pool_apply<1>(gy, y, tap, x, w, mean, inv_std, gw, gb, gx, H, W, C, OH, OW, M);
}

extern "C" __global__ void norm_relu_pool_apply_4(const float* gy, const float* y, const unsigned char* tap, const float* x,
                                                  const float* w, const float* mean, const float* inv_std, const float* gw,
                                                  const float* gb, float* gx, int H, int W, int C, int OH, int OW, float M) {
  norm_relu_pool_apply<4>(gy, y, tap, x, w, mean, inv_std, gw, gb, gx, H, W, C, OH, OW, M);
}
