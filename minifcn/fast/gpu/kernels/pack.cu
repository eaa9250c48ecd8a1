// Copies weights into the layout of the convolutions: (F, C, KH, KW) -> (F, KH, KW, C), with the summed index innermost. They
// are rounded once in a step, not at every use. For gx, F and C change their roles and the kernel is turned by 180 degrees:
//
//     forward   packed[f, u, v, c] = w[f, c, u, v]
//     turned    packed[c, u, v, f] = w[f, c, KH-1-u, KW-1-v]         gx = this kernel applied to gy
//     phases    four kernels, of parity (a, b): packed[c, u, v, f] = w[f, c, tap(a, u), tap(b, v)], tap(0, 0) = 1, and
//               tap(1, 0) = 2, tap(1, 1) = 0 (implicit_gemm.cu)
//
// A thread writes one number; neighbours write side by side. And back: the parts of a weight gradient, (parts, F, KH, KW, C),
// are added in order into (F, C, KH, KW).

#include "common.cuh"
#include "device.cuh"

struct ToTf32 {
  typedef float Number;
  static __device__ __forceinline__ float rounded(float x) { return __int_as_float(round_tf32(x)); }
};
struct ToFloat {                                            // as it is, for products in float32
  typedef float Number;
  static __device__ __forceinline__ float rounded(float x) { return x; }
};
struct ToHalf {
  typedef unsigned short Number;
  static __device__ __forceinline__ unsigned short rounded(float x) { return round_half(x); }
};

template <class To>
__device__ __forceinline__ void pack(const float* w, typename To::Number* packed, int F, int C, int KH, int KW, int turned) {
  int k = blockIdx.x * T + threadIdx.x;
  if (k >= F * C * KH * KW) return;
  int inner = turned ? F : C, c = k % inner, v = k / inner % KW, u = k / inner / KW % KH, f = k / inner / KW / KH;
  size_t from = turned ? (((size_t)c * C + f) * KH + KH - 1 - u) * KW + KW - 1 - v : (((size_t)f * C + c) * KH + u) * KW + v;
  packed[k] = To::rounded(w[from]);
}

extern "C" __global__ void pack_tf32(const float* w, float* packed, int F, int C, int KH, int KW, int turned) {
  pack<ToTf32>(w, packed, F, C, KH, KW, turned);
}

extern "C" __global__ void pack_fp32(const float* w, float* packed, int F, int C, int KH, int KW, int turned) {
  pack<ToFloat>(w, packed, F, C, KH, KW, turned);
}

extern "C" __global__ void pack_half(const float* w, unsigned short* packed, int F, int C, int KH, int KW, int turned) {
  pack<ToHalf>(w, packed, F, C, KH, KW, turned);
}

template <class To>
__device__ __forceinline__ void pack_phases(const float* w, float* packed, int F, int C) {
  int k = blockIdx.x * T + threadIdx.x;
  if (k >= F * C * 9) return;
  int before = 0, a = 0, b = 0;                                            // numbers before the kernel of this parity
  for (int phase = 0; phase < 4; phase++) {
    a = phase >> 1, b = phase & 1;
    int size = (1 + a) * (1 + b) * F * C;
    if (k < before + size) break;
    before += size;
  }
  int r = k - before, f = r % F, v = r / F % (1 + b), u = r / F / (1 + b) % (1 + a), c = r / F / (1 + b) / (1 + a);
  int row = a ? 2 - 2 * u : 1, column = b ? 2 - 2 * v : 1;
  packed[k] = To::rounded(w[((size_t)f * C + c) * 9 + row * 3 + column]);
}

extern "C" __global__ void pack_phases_tf32(const float* w, float* packed, int F, int C) {
  pack_phases<ToTf32>(w, packed, F, C);
}

extern "C" __global__ void pack_phases_fp32(const float* w, float* packed, int F, int C) {
  pack_phases<ToFloat>(w, packed, F, C);
}

extern "C" __global__ void add_parts(const float* parts, float* gw, int count, int F, int C, int taps) {
  int k = blockIdx.x * T + threadIdx.x, size = F * C * taps;
  if (k >= size) return;
  float sum = 0.f;
#pragma unroll 8
  for (int p = 0; p < count; p++) sum += parts[(size_t)p * size + k];
  int c = k % C, tap = k / C % taps, f = k / C / taps;
  gw[((size_t)f * C + c) * taps + tap] = sum;
}
