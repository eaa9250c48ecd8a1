// The weight gradient of a 3 x 3 convolution (padding 1, stride S = 1 or 2), in tf32:
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

template <int S, int TH, int STAGES>
__device__ __forceinline__ void weight_gradient(const float* x, const float* gy, float* parts, int N, int H, int W, int C,
                                                int F, int OH, int OW) {
  constexpr int THREADS = 256, XR = (TH - 1) * S + 3, XS = 7 * S + 3, PG = 72, PX = S == 1 ? 72 : 68;
  constexpr int GY = TH * 8 * PG * 4, STAGE = GY + XR * XS * PX * 4;       // bytes
  DYNAMIC_SHARED(float, numbers);
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, g = lane >> 2, t = lane & 3;
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

  float sums[9][4][4] = {};
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
    const float* gys = numbers + k % STAGES * (STAGE / 4) + t * PG + 4 * g;
    const float* xs = numbers + k % STAGES * (STAGE / 4) + GY / 4 + t * S * PX + warp * 8 + g;
#pragma unroll
    for (int r = 0; r < TH; r++) {
      unsigned a[4][4];
#pragma unroll
      for (int m = 0; m < 4; m += 2)
#pragma unroll
        for (int q = 0; q < 2; q++) {
          float4 four = *(const float4*)(gys + (r * 8 + 4 * q) * PG + 16 * m);
          a[m][2 * q] = round_tf32(four.x), a[m][2 * q + 1] = round_tf32(four.y);
          a[m + 1][2 * q] = round_tf32(four.z), a[m + 1][2 * q + 1] = round_tf32(four.w);
        }
#pragma unroll
      for (int tap = 0; tap < 9; tap++) {
        const float* at = xs + ((r * S + tap / 3) * XS + tap % 3) * PX;
        unsigned b[2] = {round_tf32(at[0]), round_tf32(at[4 * S * PX])};
#pragma unroll
        for (int m = 0; m < 4; m++) mma_tf32(sums[tap][m], a[m], b);
      }
    }
  }

  float* out = parts + (size_t)blockIdx.x * F * 9 * C + c0 + warp * 8 + t * 2;
#pragma unroll
  for (int tap = 0; tap < 9; tap++)
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int f = f0 + 32 * (m / 2) + 4 * g + 2 * (m % 2) + h;
        *(float2*)(out + ((size_t)f * 9 + tap) * C) = make_float2(sums[tap][m][2 * h], sums[tap][m][2 * h + 1]);
      }
}

extern "C" __global__ void __launch_bounds__(256, 1)
weight_gradient_s1(const float* x, const float* gy, float* parts, int N, int H, int W, int C, int F, int OH, int OW) {
  weight_gradient<1, 10, 3>(x, gy, parts, N, H, W, C, F, OH, OW);
}

extern "C" __global__ void __launch_bounds__(256, 1)
weight_gradient_s2(const float* x, const float* gy, float* parts, int N, int H, int W, int C, int F, int OH, int OW) {
  weight_gradient<2, 5, 3>(x, gy, parts, N, H, W, C, F, OH, OW);
}

// For cards with 99 KB of shared memory a block: smaller patches.

extern "C" __global__ void __launch_bounds__(256, 1)
weight_gradient_s1_small(const float* x, const float* gy, float* parts, int N, int H, int W, int C, int F, int OH, int OW) {
  weight_gradient<1, 5, 3>(x, gy, parts, N, H, W, C, F, OH, OW);
}

extern "C" __global__ void __launch_bounds__(256, 1)
weight_gradient_s2_small(const float* x, const float* gy, float* parts, int N, int H, int W, int C, int F, int OH, int OW) {
  weight_gradient<2, 2, 3>(x, gy, parts, N, H, W, C, F, OH, OW);
}
