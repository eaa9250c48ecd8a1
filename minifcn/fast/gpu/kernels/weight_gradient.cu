// The weight gradient of a 3 x 3 convolution (padding 1, stride S = 1 or 2), in tf32 or float32:
//
//     gw[f, u, v, c] = sum over n, i, j of gy[n, i, j, f] x[n, i*S + u - 1, j*S + v - 1, c]
//
// The summed index is the pixel. A block makes all nine taps of 64 filters times 64 channels. It takes a patch of gy, TH x 8
// pixels, and the patch of x that its windows read; each is fetched once and used for nine taps:
//
//     gy patch          x patch with border        tap (u, v): pixel (r, s) of gy meets pixel (r*S + u, s*S + v) of x
//     +--------+        +----------+
//     | TH x 8 |        |          |               eight pixels of a row of gy are one mma deep
//     +--------+        +----------+
//
// The patches are dealt to gridDim.x blocks; each writes its own partial sum, and add_parts adds them in order: the result
// does not depend on which block was first. A warp takes 8 channels and all 64 filters.
//
// ldmatrix cannot transpose 32-bit numbers, and the pixel is the outer index here. Which filter is which row of the mma is
// free, though: row 16*m + g + 8*h stands for filter 32*(m/2) + 4*g + 2*(m%2) + h, so that one float4 of gy feeds two
// fragments. The pitches (72 floats a pixel; 68 at stride 2) keep the 32 threads of a load in different banks.
// Needs C % 64 == 0 and F % 64 == 0. Grid: (parts, F / 64, C / 64).

#include "common.cuh"
#include "fragments.cuh"

// How a patch is multiplied: `row` adds what eight pixels of a row of gy give, whose first lies at gys; xs: the first pixel of
// the first row of x that they meet. `store` writes all nine taps of the thread's filters and channels.

template <int S, int PG, int PX, int XS> struct TensorCores {              // a warp makes 64 filters times 8 channels
  static constexpr int ROWS_AT_ONCE = 16;
  float sums[9][4][4] = {};
  const int warp = threadIdx.x >> 5, g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;

  __device__ __forceinline__ void row(const float* gys, const float* xs) {
    gys += t * PG + 4 * g, xs += t * S * PX + warp * 8 + g;
    unsigned a[4][4];
#pragma unroll
    for (int m = 0; m < 4; m += 2)
#pragma unroll
      for (int q = 0; q < 2; q++) {
        float4 four = *(const float4*)(gys + 4 * q * PG + 16 * m);
        a[m][2 * q] = round_tf32(four.x), a[m][2 * q + 1] = round_tf32(four.y);
        a[m + 1][2 * q] = round_tf32(four.z), a[m + 1][2 * q + 1] = round_tf32(four.w);
      }
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
      const float* at = xs + (tap / 3 * XS + tap % 3) * PX;
      unsigned b[2] = {round_tf32(at[0]), round_tf32(at[4 * S * PX])};
#pragma unroll
      for (int m = 0; m < 4; m++) mma_tf32(sums[tap][m], a[m], b);
    }
  }
  __device__ __forceinline__ void store(float* out, int C) const {
#pragma unroll
    for (int tap = 0; tap < 9; tap++)
#pragma unroll
      for (int m = 0; m < 4; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          int f = 32 * (m / 2) + 4 * g + 2 * (m % 2) + h;
          float* to = out + ((size_t)f * 9 + tap) * C + warp * 8 + t * 2;
          *(float2*)to = make_float2(sums[tap][m][2 * h], sums[tap][m][2 * h + 1]);
        }
  }
};

// On the ordinary units: a warp makes 8 filters times 64 channels, a thread two of these. It keeps a window of x, 3 x 3 pixels,
// and moves it along the row: for 144 multiplications it loads 8 numbers of gy, the same as its neighbours, and S columns of x.

template <int S, int PG, int PX, int XS> struct Registers {
  static constexpr int ROWS_AT_ONCE = 1;
  float sums[9][8][2] = {};
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;

  __device__ __forceinline__ void row(const float* gys, const float* xs) {
    gys += warp * 8, xs += lane * 2;
    float2 window[3][3];
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
      for (int u = 0; u < 3; u++)
#pragma unroll
        for (int v = 0; v < 3; v++)
          window[u][v] = j > 0 && v + S < 3 ? window[u][v + S] : *(const float2*)(xs + (u * XS + j * S + v) * PX);
      const float4 low = *(const float4*)(gys + j * PG), high = *(const float4*)(gys + j * PG + 4);
      const float g[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int tap = 0; tap < 9; tap++)
#pragma unroll
        for (int f = 0; f < 8; f++)
          sums[tap][f][0] += g[f] * window[tap / 3][tap % 3].x, sums[tap][f][1] += g[f] * window[tap / 3][tap % 3].y;
    }
  }
  __device__ __forceinline__ void store(float* out, int C) const {
#pragma unroll
    for (int tap = 0; tap < 9; tap++)
#pragma unroll
      for (int f = 0; f < 8; f++)
        *(float2*)(out + ((size_t)(warp * 8 + f) * 9 + tap) * C + lane * 2) = make_float2(sums[tap][f][0], sums[tap][f][1]);
  }
};

template <template <int, int, int, int> class Multiplier, int S, int TH, int STAGES>
__device__ __forceinline__ void weight_gradient(const float* x, const float* gy, float* parts, int N, int H, int W, int C,
                                                int F, int OH, int OW) {
  constexpr int THREADS = 256, XR = (TH - 1) * S + 3, XS = 7 * S + 3, PG = 72, PX = S == 1 ? 72 : 68;
  constexpr int GY = TH * 8 * PG * 4, STAGE = GY + XR * XS * PX * 4;       // bytes
  DYNAMIC_SHARED(float, numbers);
  const int thread = threadIdx.x;
  const int f0 = blockIdx.y * 64, c0 = blockIdx.z * 64, down = (OH + TH - 1) / TH, across = (OW + 7) / 8;
  const int patches = N * down * across, step = gridDim.x;
  auto fetch = [&](int patch, float* stage) {
    const int n = patch / (down * across), i0 = patch % (down * across) / across * TH, j0 = patch % across * 8,
        c = (thread & 15) * 4;
#pragma unroll
    for (int k = 0; k < (TH * 8 * 16 + THREADS - 1) / THREADS; k++) {
      int pixel = (thread >> 4) + k * (THREADS / 16), i = i0 + (pixel >> 3), j = j0 + (pixel & 7);
      const float* from = gy + (long long)((n * OH + i) * OW + j) * F + f0 + c;
      if (pixel < TH * 8) copy16(shared_address(stage + pixel * PG + c), from, i < OH && j < OW);
    }
#pragma unroll
    for (int k = 0; k < (XR * XS * 16 + THREADS - 1) / THREADS; k++) {
      int pixel = (thread >> 4) + k * (THREADS / 16), r = pixel / XS, h = i0 * S - 1 + r, s = j0 * S - 1 + pixel - r * XS;
      const float* from = x + (long long)((n * H + h) * W + s) * C + c0 + c;
      const bool inside = (unsigned)h < (unsigned)H && (unsigned)s < (unsigned)W;
      if (pixel < XR * XS) copy16(shared_address(stage + GY / 4 + pixel * PX + c), from, inside);
    }
  };

  Multiplier<S, PG, PX, XS> multiplier;
  int patch = blockIdx.x;
  for (int k = 0; k < STAGES - 1; k++) {
    if (patch + k * step < patches) fetch(patch + k * step, numbers + k * (STAGE / 4));
    copies_commit();
  }
  for (int k = 0; patch < patches; patch += step, k++) {
    copies_wait<STAGES - 2>();
    __syncthreads();
    if (patch + (STAGES - 1) * step < patches) fetch(patch + (STAGES - 1) * step,
                                                     numbers + (k + STAGES - 1) % STAGES * (STAGE / 4));
    copies_commit();
    const float *gys = numbers + k % STAGES * (STAGE / 4), *xs = gys + GY / 4;
#pragma unroll Multiplier<S, PG, PX, XS>::ROWS_AT_ONCE
    for (int r = 0; r < TH; r++) multiplier.row(gys + r * 8 * PG, xs + r * S * XS * PX);
  }
  multiplier.store(parts + ((size_t)blockIdx.x * F + f0) * 9 * C + c0, C);
}

extern "C" __global__ void __launch_bounds__(256, 1)
weight_gradient_s1(const float* x, const float* gy, float* parts, int N, int H, int W, int C, int F, int OH, int OW) {
  weight_gradient<TensorCores, 1, 10, 3>(x, gy, parts, N, H, W, C, F, OH, OW);
}

extern "C" __global__ void __launch_bounds__(256, 1)
weight_gradient_s2(const float* x, const float* gy, float* parts, int N, int H, int W, int C, int F, int OH, int OW) {
  weight_gradient<TensorCores, 2, 5, 3>(x, gy, parts, N, H, W, C, F, OH, OW);
}

// For cards with 99 KB of shared memory a block: smaller patches.

extern "C" __global__ void __launch_bounds__(256, 1)
weight_gradient_s1_small(const float* x, const float* gy, float* parts, int N, int H, int W, int C, int F, int OH, int OW) {
  weight_gradient<TensorCores, 1, 5, 3>(x, gy, parts, N, H, W, C, F, OH, OW);
}

extern "C" __global__ void __launch_bounds__(256, 1)
weight_gradient_s2_small(const float* x, const float* gy, float* parts, int N, int H, int W, int C, int F, int OH, int OW) {
  weight_gradient<TensorCores, 2, 2, 3>(x, gy, parts, N, H, W, C, F, OH, OW);
}

// In float32; the patches fit these cards, too.

extern "C" __global__ void __launch_bounds__(256, 1)
weight_gradient_fp32_s1(const float* x, const float* gy, float* parts, int N, int H, int W, int C, int F, int OH, int OW) {
  weight_gradient<Registers, 1, 5, 3>(x, gy, parts, N, H, W, C, F, OH, OW);
}

extern "C" __global__ void __launch_bounds__(256, 1)
weight_gradient_fp32_s2(const float* x, const float* gy, float* parts, int N, int H, int W, int C, int F, int OH, int OW) {
  weight_gradient<Registers, 2, 2, 3>(x, gy, parts, N, H, W, C, F, OH, OW);
}
