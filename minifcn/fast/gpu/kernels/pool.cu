// Max-pooling: pool.maximum_of_windows and its gradient, channels last, V channels a thread (four where C allows it).
//
// A thread takes one output pixel and keeps the first largest of its window in row-major order (a strict comparison) and that
// tap's number u*KW + v, one byte. Padding is -inf: it is simply not visited.
//
//     x   . a . .         y  b      tap  1       backward: a pixel of gx adds gy of every window that contains it and whose
//         . . b .                                recorded tap it is, 4 windows at most for K = 3, S = 2: no atomics
//
// Grid: (rows (n, i), pieces of a row): one division a thread, for V channels.

#include "common.cuh"

template <int V>
__device__ __forceinline__ void max_pool(const float* x, float* y, unsigned char* tap, int H, int W, int C, int KH, int KW,
                                         int OH, int OW, int SH, int SW, int PH, int PW) {
  int q = (blockIdx.y * T + threadIdx.x) * V;
  if (q >= OW * C) return;
  int c = q % C, top = (int)(blockIdx.x % OH) * SH - PH, left = q / C * SW - PW, n = blockIdx.x / OH;
  Channels<V> best;
  int winner[V];
#pragma unroll
  for (int e = 0; e < V; e++) best.v[e] = MINUS_INFINITY, winner[e] = max(-top, 0) * KW + max(-left, 0);
  for (int h = max(top, 0); h < min(top + KH, H); h++)
    for (int s = max(left, 0); s < min(left + KW, W); s++) {
      Channels<V> pixel(x + (((size_t)n * H + h) * W + s) * C + c);
#pragma unroll
      for (int e = 0; e < V; e++) {
        if (pixel.v[e] > best.v[e]) winner[e] = (h - top) * KW + s - left;
        if (pixel.v[e] > best.v[e] || pixel.v[e] != pixel.v[e]) best.v[e] = pixel.v[e];        // a NaN stays a NaN
      }
    }
  size_t out = (size_t)blockIdx.x * OW * C + q;
  best.store(y + out);
#pragma unroll
  for (int e = 0; e < V; e++) tap[out + e] = (unsigned char)winner[e];
}

extern "C" __global__ void max_pool_1(const float* x, float* y, unsigned char* tap, int H, int W, int C, int KH, int KW,
                                      int OH, int OW, int SH, int SW, int PH, int PW) {
  max_pool<1>(x, y, tap, H, W, C, KH, KW, OH, OW, SH, SW, PH, PW);
}

extern "C" __global__ void max_pool_4(const float* x, float* y, unsigned char* tap, int H, int W, int C, int KH, int KW,
                                      int OH, int OW, int SH, int SW, int PH, int PW) {
  max_pool<4>(x, y, tap, H, W, C, KH, KW, OH, OW, SH, SW, PH, PW);
}

template <int V>
__device__ __forceinline__ void max_pool_grad(const float* gy, const unsigned char* tap, float* gx, int H, int W, int C,
                                              int KH, int KW, int OH, int OW, int SH, int SW, int PH, int PW) {
  int q = (blockIdx.y * T + threadIdx.x) * V;
  if (q >= W * C) return;
  int c = q % C, r = blockIdx.x % H + PH, s = q / C + PW, n = blockIdx.x / H;
  int i1 = last_window(r, SH, OH), j1 = last_window(s, SW, OW);
  Channels<V> sum;
#pragma unroll
  for (int e = 0; e < V; e++) sum.v[e] = 0.f;
  for (int i = first_window(r, KH - 1, SH); i <= i1; i++)
    for (int j = first_window(s, KW - 1, SW); j <= j1; j++) {
      size_t at = (((size_t)n * OH + i) * OW + j) * C + c;
      const int here = (r - i * SH) * KW + s - j * SW;
      Channels<V> g(gy + at);
#pragma unroll
      for (int e = 0; e < V; e++)
        if (tap[at + e] == here) sum.v[e] += g.v[e];
    }
  sum.store(gx + (size_t)blockIdx.x * W * C + q);
}

extern "C" __global__ void max_pool_grad_1(const float* gy, const unsigned char* tap, float* gx, int H, int W, int C, int KH,
                                           int KW, int OH, int OW, int SH, int SW, int PH, int PW) {
  max_pool_grad<1>(gy, tap, gx, H, W, C, KH, KW, OH, OW, SH, SW, PH, PW);
}

extern "C" __global__ void max_pool_grad_4(const float* gy, const unsigned char* tap, float* gx, int H, int W, int C, int KH,
                                           int KW, int OH, int OW, int SH, int SW, int PH, int PW) {
  max_pool_grad<4>(gy, tap, gx, H, W, C, KH, KW, OH, OW, SH, SW, PH, PW);
}
