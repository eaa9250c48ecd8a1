// A convolution as one matrix product whose columns are never written: any kernel, stride and padding, in tf32 or float32.
//
//     y[p, f] = sum_k cols[p, k] w[f, k]     p = (n, i, j) an output pixel, k = (u, v, c) a tap and a channel
//     cols[p, k] = x[n, i*SH + u - PH, j*SW + v - PW, c]      fetched when it is needed, zero outside of the image
//
//              k ->                     A block makes BM pixels times BN filters. It walks along k, 128 bytes (32 numbers) at
//         +--+--+--+--+ ...             a time; while the warps multiply one piece, the next STAGES - 1 are under way:
//      p  |  |##|..|..|   BM rows
//         +--+--+--+--+ ...                  shared memory    | piece k | piece k+1 | piece k+2 |   a ring
//      f  |  |##|..|..|   BN rows                               multiply   arriving    arriving
//
// Needs C % 4 == 0 (16 bytes of a pixel are one copy), F % BN == 0, at most 15 taps a side, x below 2 GiB. Grid: (pixels / BM,
// F / BN).

#include "common.cuh"
#include "fragments.cuh"

// How the tile is multiplied. A thread of a Multiplier has some rows (pixels) of it, and of each row some columns (filters).
// `piece` adds the products of 32 numbers: BM rows of 128 bytes lie at `stage`, BN rows behind them (fragments.cuh).

template <int BM, int BN, int WM, int WN> struct TensorCores {            // a warp makes WM x WN, factors rounded to tf32
  static constexpr int M = BM, N = BN, WARPS_N = BN / WN, THREADS = BM / WM * WARPS_N * 32, ROWS = WM / 8;
  float sums[WM / 16][WN / 8][4] = {};
  const int lane = threadIdx.x & 31, wm = (threadIdx.x >> 5) / WARPS_N * WM, wn = (threadIdx.x >> 5) % WARPS_N * WN;
  const int a = (wm + (lane & 15)) * 128, b = BM * 128 + (wn + (lane & 7) + (lane >> 4) * 8) * 128;

  __device__ __forceinline__ void piece(const char* stage) {
    const Shared at = shared_address(stage);
    multiply<Tf32>(sums, at + a, 16 * 128, lane & 7, at + b);
  }
  __device__ __forceinline__ int row(int i) const { return wm + i / 2 * 16 + (lane >> 2) + i % 2 * 8; }
  __device__ __forceinline__ void store(int i, float* out) const {
#pragma unroll
    for (int j = 0; j < WN / 8; j++)
      *(float2*)(out + wn + (lane & 3) * 2 + j * 8) = make_float2(sums[i / 2][j][i % 2 * 2], sums[i / 2][j][i % 2 * 2 + 1]);
  }
};

// The same on the ordinary units, with products and sums in float32: a thread makes 8 x 8 of the tile, a warp 32 x 64.
//
//     rows     wm + ty + 4i      a float4 is four of the 32 numbers. For 16 loads there are 256 multiplications; the eight
//     columns  wn + tx + 8j      columns that a warp reads together lie in different banks, as do the four rows

template <int BM, int BN> struct Registers {
  static constexpr int M = BM, N = BN, THREADS = BM / 32 * (BN / 64) * 32, ROWS = 8;
  float sums[8][8] = {};
  const int tx = threadIdx.x & 7, ty = threadIdx.x >> 3 & 3, warp = threadIdx.x >> 5;
  const int wm = warp / (BN / 64) * 32, wn = warp % (BN / 64) * 64;

  __device__ __forceinline__ void piece(const char* stage) {
    const char *a_rows = stage + (wm + ty) * 128, *b_rows = stage + (BM + wn + tx) * 128;
#pragma unroll 1
    for (int c = 0; c < 8; c++) {                                          // chunks of 16 bytes
      float4 a[8];
#pragma unroll
      for (int i = 0; i < 8; i++) a[i] = *(const float4*)(a_rows + i * 4 * 128 + ((c ^ ty ^ i % 2 * 4) << 4));
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float4 b = *(const float4*)(b_rows + j * 8 * 128 + ((c ^ tx) << 4));
#pragma unroll
        for (int i = 0; i < 8; i++)
          sums[i][j] += a[i].x * b.x, sums[i][j] += a[i].y * b.y, sums[i][j] += a[i].z * b.z, sums[i][j] += a[i].w * b.w;
      }
    }
  }
  __device__ __forceinline__ int row(int i) const { return wm + ty + 4 * i; }
  __device__ __forceinline__ void store(int i, float* out) const {
#pragma unroll
    for (int j = 0; j < 8; j++) out[wn + tx + 8 * j] = sums[i][j];
  }
};

// PHASES: the gradient gx of a 3 x 3 convolution with stride 2 and padding 1. An input pixel (2i + a, 2j + b) is read by
// 1 + a windows in each column and 1 + b in each row, always by the same taps:
//
//     row 2i    : tap 1 of window i                       So gx is four small convolutions of gy with stride 1, one for each
//     row 2i + 1: tap 2 of window i, tap 0 of window i+1      parity (a, b), with 1, 2, 2 and 4 taps: no zeros are multiplied.
//
// Here x is gy (N, H, W, C), y is gx (N, OH, OW, F), blockIdx.z the parity, biggest first; w holds the four kernels behind
// each other, (F, 1 + a, 1 + b, C) each (pack.cu).

template <class Multiplier, int STAGES, bool PHASES, bool CACHED>
__device__ __forceinline__ void implicit_gemm(const float* x_, const float* w_, float* y, int N, int H, int W, int C, int F,
                                              int KH, int KW, int SH, int SW, int PH, int PW, int OH, int OW) {
  constexpr int BM = Multiplier::M, BN = Multiplier::N, ROWS = Multiplier::THREADS / 8, STAGE = (BM + BN) * 128;
  static_assert(BM % ROWS == 0 && BN % ROWS == 0 && ROWS % 8 == 0, "every thread copies whole chunks");
  DYNAMIC_SHARED(char, bytes);
  const Shared memory = shared_address(bytes);
  const char *x = (const char*)x_, *w = (const char*)w_;
  const int thread = threadIdx.x, p0 = blockIdx.x * BM, f0 = blockIdx.y * BN;
  const int pixel_bytes = C * 4, phase = PHASES ? 3 - (int)blockIdx.z : 0, rows = PHASES ? H : OH, columns = PHASES ? W : OW;
  if (PHASES) {
    KH = 1 + (phase >> 1), KW = 1 + (phase & 1), SH = SW = 1, PH = PW = 0;
    w += (size_t)(phase ? 2 * phase - 1 : 0) * pixel_bytes * F;           // 1, 2, 2 taps stand before it
  }
  const int positions = N * rows * columns, row_bytes = KH * KW * pixel_bytes, pieces = (row_bytes + 127) / 128;

  // A thread copies chunk thread % 8 of rows thread / 8, thread / 8 + ROWS, ... For each of its pixels: where the first tap
  // lies in x, and which taps lie inside (bit u: that row, bit 16 + v: that column).
  const int row = thread >> 3, chunk = thread & 7, place = row * 128 + ((chunk ^ (row & 7)) << 4);
  int start[BM / ROWS];
  unsigned inside[BM / ROWS];
#pragma unroll
  for (int m = 0; m < BM / ROWS; m++) {
    int p = p0 + row + m * ROWS, q = p / columns, n = q / rows, h = (q - n * rows) * SH - PH, k = (p - q * columns) * SW - PW;
    unsigned mask = 0;
#pragma unroll 1
    for (int u = 0; u < KH; u++) mask |= (unsigned)(h + u) < (unsigned)H ? 1u << u : 0;
#pragma unroll 1
    for (int v = 0; v < KW; v++) mask |= (unsigned)(k + v) < (unsigned)W ? 0x10000u << v : 0;
    start[m] = ((n * H + h) * W + k) * pixel_bytes, inside[m] = p < positions ? mask : 0;
  }
  const char* w_row = w + (size_t)(f0 + row) * row_bytes + chunk * 16;
  int u = 0, v = 0, c = chunk * 16;                                        // the tap, and the byte of the pixel, copied next
  for (; c >= pixel_bytes; c -= pixel_bytes)
    if (++v == KW) v = 0, u++;
  auto fetch = [&](int piece) {                                            // called for piece 0, 1, 2, ...
    const Shared stage = memory + piece % STAGES * STAGE + place;
    const unsigned tap = u < KH ? 1u << u | 0x10000u << v : 0xffffffffu;   // no tap is left: nothing is inside
    const int offset = (u * W + v) * pixel_bytes + c;
#pragma unroll
    for (int m = 0; m < BM / ROWS; m++) {
      const bool is_inside = (inside[m] & tap) == tap;
      if (CACHED) copy16_cached(stage + m * ROWS * 128, x + (start[m] + offset), is_inside);
      else copy16(stage + m * ROWS * 128, x + (start[m] + offset), is_inside);
    }
#pragma unroll
    for (int m = 0; m < BN / ROWS; m++)
      copy16(stage + (BM + m * ROWS) * 128, w_row + (size_t)(m * ROWS) * row_bytes + piece * 128,
             piece * 128 + chunk * 16 < row_bytes);
    for (c += 128; c >= pixel_bytes; c -= pixel_bytes)
      if (++v == KW) v = 0, u++;
  };

  Multiplier multiplier;
  for (int piece = 0; piece < STAGES - 1; piece++) {
    if (piece < pieces) fetch(piece);
    copies_commit();
  }
  for (int piece = 0; piece < pieces; piece++) {
    copies_wait<STAGES - 2>();
    __syncthreads();                                                       // this piece is there, the last one done with
    if (piece + STAGES - 1 < pieces) fetch(piece + STAGES - 1);
    copies_commit();
    multiplier.piece(bytes + piece % STAGES * STAGE);
  }

#pragma unroll
  for (int i = 0; i < Multiplier::ROWS; i++) {
    int p = p0 + multiplier.row(i), to = p;
    bool kept = p < positions;
    if (PHASES) {
      int q = p / columns, n = q / rows, h = (q - n * rows) * 2 + (phase >> 1), k = (p - q * columns) * 2 + (phase & 1);
      to = (n * OH + h) * OW + k, kept = kept && h < OH && k < OW;
    }
    if (kept) multiplier.store(i, y + (size_t)to * F + f0);
  }
}

// Tiles measured best (H100): 128 x 64 where F is 64, as in the stem; 160 x 128 because 4,800 and 19,200 pixels are 30 and
// 120 whole tiles. The stem's taps read the same pixels: in L1 too, it took 0.35 for 0.48 ms.

extern "C" __global__ void __launch_bounds__(128, 3)
implicit_gemm_128x64(const float* x, const float* w, float* y, int N, int H, int W, int C, int F, int KH, int KW, int SH,
                     int SW, int PH, int PW, int OH, int OW) {
  implicit_gemm<TensorCores<128, 64, 64, 32>, 3, false, true>(x, w, y, N, H, W, C, F, KH, KW, SH, SW, PH, PW, OH, OW);
}

extern "C" __global__ void __launch_bounds__(256, 1)
implicit_gemm_160x128(const float* x, const float* w, float* y, int N, int H, int W, int C, int F, int KH, int KW, int SH,
                      int SW, int PH, int PW, int OH, int OW) {
  implicit_gemm<TensorCores<160, 128, 80, 32>, 4, false, false>(x, w, y, N, H, W, C, F, KH, KW, SH, SW, PH, PW, OH, OW);
}

extern "C" __global__ void __launch_bounds__(128, 3)
implicit_gemm_fp32(const float* x, const float* w, float* y, int N, int H, int W, int C, int F, int KH, int KW, int SH, int SW,
                   int PH, int PW, int OH, int OW) {
  implicit_gemm<Registers<128, 64>, 3, false, false>(x, w, y, N, H, W, C, F, KH, KW, SH, SW, PH, PW, OH, OW);
}

extern "C" __global__ void __launch_bounds__(128, 3)
four_phases_128x64(const float* gy, const float* w, float* gx, int N, int OH, int OW, int F, int C, int H, int W) {
  implicit_gemm<TensorCores<128, 64, 64, 32>, 3, true, false>(gy, w, gx, N, OH, OW, F, C, 3, 3, 2, 2, 1, 1, H, W);
}

extern "C" __global__ void __launch_bounds__(128, 3)
four_phases_fp32(const float* gy, const float* w, float* gx, int N, int OH, int OW, int F, int C, int H, int W) {
  implicit_gemm<Registers<128, 64>, 3, true, false>(gy, w, gx, N, OH, OW, F, C, 3, 3, 2, 2, 1, 1, H, W);
}
