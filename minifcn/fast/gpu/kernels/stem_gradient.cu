// The weight gradient of the stem, a 7 x 7 convolution of pictures (3 channels, stride 2, padding 3), in tf32:
//
//     gw[f, u, v, c] = sum over n, i, j of gy[n, i, j, f] x[n, 2i + u - 3, 2j + v - 3, c]
//
// As columns the pictures would take 49/4 of their memory; here they are read once. As in weight_gradient.cu the summed index
// is the pixel, and a block takes a patch of gy, 8 x 8 pixels of 64 filters, and the patch of x that its windows read. With
// three channels a window's row is one run of memory:
//
//     row 2r + u of the patch of x    |rgb|rgb|rgb|rgb|rgb|rgb|rgb|rgb|rgb|...
//     window j = 0                     `------- 21 numbers -------'
//     window j = 1                             `------- 21 numbers -------'        6 numbers further: two pixels
//
// A warp takes one row u of the kernel: its 21 numbers are the columns of three mma (24, of which the last three are thrown
// away) for all 64 filters; eight windows of a row of gy are one mma deep. There are seven warps.
// The patches are dealt to gridDim.x blocks, and add_parts adds their sums in order. Needs F % 64 == 0. Grid: (parts, F / 64).

#include "common.cuh"
#include "fragments.cuh"

extern "C" __global__ void __launch_bounds__(224, 2)
stem_gradient(const float* x, const float* gy, float* parts, int N, int H, int W, int F, int OH, int OW) {
  constexpr int THREADS = 224, STAGES = 3, TH = 8, XR = 2 * TH + 5, RUN = 3 * 21, PG = 72, PX = 68;        // pitches: floats
  constexpr int GY = TH * 8 * PG, STAGE = GY + XR * PX;
  DYNAMIC_SHARED(float, numbers);
  const int thread = threadIdx.x, lane = thread & 31, u = thread >> 5, g = lane >> 2, t = lane & 3, f0 = blockIdx.y * 64;
  const int down = (OH + TH - 1) / TH, across = (OW + 7) / 8, patches = N * down * across, step = gridDim.x;
  auto fetch = [&](int patch, float* stage) {
    const int n = patch / (down * across), i0 = patch % (down * across) / across * TH, j0 = patch % across * 8;
    for (int k = thread; k < TH * 8 * 16; k += THREADS) {                  // 16 bytes of gy
      int pixel = k >> 4, i = i0 + (pixel >> 3), j = j0 + (pixel & 7);
      const float* from = gy + (long long)((n * OH + i) * OW + j) * F + f0 + (k & 15) * 4;
      copy16(shared_address(stage + pixel * PG + (k & 15) * 4), from, i < OH && j < OW);
    }
    for (int k = thread; k < XR * RUN; k += THREADS) {                     // a number of x: a run begins anywhere
      int r = k / RUN, h = 2 * i0 - 3 + r, at = 3 * (2 * j0 - 3) + k - r * RUN;
      const float* from = x + (long long)(n * H + h) * W * 3 + at;
      copy4(shared_address(stage + GY + r * PX + k - r * RUN), from, (unsigned)h < (unsigned)H && (unsigned)at < 3u * W);
    }
  };

  float sums[3][4][4] = {};
  int patch = blockIdx.x;
  for (int k = 0; k < STAGES - 1; k++) {
    if (patch + k * step < patches) fetch(patch + k * step, numbers + k * STAGE);
    copies_commit();
  }
  for (int k = 0; patch < patches; patch += step, k++) {
    copies_wait<STAGES - 2>();
    __syncthreads();
    if (patch + (STAGES - 1) * step < patches) fetch(patch + (STAGES - 1) * step, numbers + (k + STAGES - 1) % STAGES * STAGE);
    copies_commit();
    const float* gys = numbers + k % STAGES * STAGE + t * PG + 4 * g;
    const float* xs = numbers + k % STAGES * STAGE + GY + u * PX + 6 * t + g;
#pragma unroll 2
    for (int r = 0; r < TH; r++) {
      unsigned a[4][4];                                                    // row 16m + g + 8h of the mma is filter
#pragma unroll                                                             // 32(m/2) + 4g + 2(m%2) + h: weight_gradient.cu
      for (int m = 0; m < 4; m += 2)
#pragma unroll
        for (int q = 0; q < 2; q++) {
          float4 four = *(const float4*)(gys + (r * 8 + 4 * q) * PG + 16 * m);
          a[m][2 * q] = round_tf32(four.x), a[m][2 * q + 1] = round_tf32(four.y);
          a[m + 1][2 * q] = round_tf32(four.z), a[m + 1][2 * q + 1] = round_tf32(four.w);
        }
#pragma unroll
      for (int j = 0; j < 3; j++) {
        const float* at = xs + 2 * r * PX + 8 * j;
        unsigned b[2] = {round_tf32(at[0]), round_tf32(at[24])};           // windows t and t + 4
#pragma unroll
        for (int m = 0; m < 4; m++) mma_tf32(sums[j][m], a[m], b);
      }
    }
  }

#pragma unroll
  for (int j = 0; j < 3; j++)
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int f = f0 + 32 * (m / 2) + 4 * g + 2 * (m % 2) + e / 2, at = 8 * j + 2 * t + e % 2;
        if (at < 21) parts[((size_t)blockIdx.x * F + f) * 147 + u * 21 + at] = sums[j][m][e];
      }
}
