// Batch normalisation with the ReLU and the shortcut that follow it: batchnorm.normalize and its gradient, channels last.
// x is (M, C): M pixels of the batch, C channels.
//
//             channels ->
//     pixel 0  . . . . . .       A block takes 32 groups of V channels (fewer if C has fewer), every (slabs * lanes)-th pixel;
//     pixel 1  . . . . . .       its lanes are merged in shared memory        -> partial[slab][c]
//     pixel 2  . . . . . .       then a block for each channel merges the slabs, as a tree  -> (C,)
//
// The order of the sums is always the same, so the result does not depend on which block ends first. V is 4 if C is a multiple
// of four.

#include "common.cuh"
#include "sums.cuh"

// Mean and centred sum of squares of n numbers. One number is added after Welford (1962), two are merged after Chan, Golub &
// LeVeque (1983): neither subtracts large numbers that are nearly equal. All is counted from the channel's first pixel until
// the end, so that a mean of 1e4 is not rounded to 1e-3 at each step where the deviation is 0.1.
struct Moments { float n, mean, squares; };

__device__ __forceinline__ Moments merged(Moments a, Moments b) {
  float n = a.n + b.n, d = b.mean - a.mean;
  if (n == 0.f) return a;
  return {n, a.mean + d * (b.n / n), a.squares + b.squares + d * d * (a.n * b.n / n)};
}

template <int V>
__device__ __forceinline__ void moments(const float* x, float* partial, int M, int C) {
  __shared__ Moments merging[V][T];
  Place at(C, V);
  int c = at.channel(V);
  float n = 0.f, mean[V] = {}, squares[V] = {};
  if (c < C) {
    const Channels<V> zero(x + c);
#pragma unroll 4
    for (int m = blockIdx.y * at.lanes + at.lane; m < M; m += gridDim.y * at.lanes) {
      Channels<V> pixel(x + (size_t)m * C + c);
      n += 1.f;
      float share = 1.f / n;
#pragma unroll
      for (int e = 0; e < V; e++) {
        float value = pixel.v[e] - zero.v[e], d = value - mean[e];
        mean[e] += d * share, squares[e] += d * (value - mean[e]);
      }
    }
  }
#pragma unroll
  for (int e = 0; e < V; e++) merging[e][threadIdx.x] = {n, mean[e], squares[e]};
  for (int half = at.lanes / 2; half; half /= 2) {
    __syncthreads();
    if (at.lane < half)
#pragma unroll
      for (int e = 0; e < V; e++)
        merging[e][threadIdx.x] = merged(merging[e][threadIdx.x], merging[e][threadIdx.x + half * at.groups]);
  }
  if (at.lane == 0 && c < C)
#pragma unroll
    for (int e = 0; e < V; e++) {
      float* out = partial + ((size_t)blockIdx.y * C + c + e) * 3;
      out[0] = merging[e][threadIdx.x].n, out[1] = merging[e][threadIdx.x].mean, out[2] = merging[e][threadIdx.x].squares;
    }
}

extern "C" __global__ void moments_1(const float* x, float* partial, int M, int C) { moments<1>(x, partial, M, C); }
extern "C" __global__ void moments_4(const float* x, float* partial, int M, int C) { moments<4>(x, partial, M, C); }

// The slabs of one channel. Grid: C.

extern "C" __global__ void moments_final(const float* x, const float* partial, float* mean, float* var, float* inv_std, int C,
                                         int slabs, float eps) {
  __shared__ Moments merging[T];
  int c = blockIdx.x, t = threadIdx.x;
  Moments all = {0.f, 0.f, 0.f};
  for (int s = t; s < slabs; s += T) {
    const float* p = partial + ((size_t)s * C + c) * 3;
    all = merged(all, {p[0], p[1], p[2]});
  }
  merging[t] = all;
  for (int half = T / 2; half; half /= 2) {
    __syncthreads();
    if (t < half) merging[t] = merged(merging[t], merging[t + half]);
  }
  if (t) return;
  all = merging[0];
  mean[c] = x[c] + all.mean, var[c] = all.squares / all.n, inv_std[c] = 1.f / sqrtf(all.squares / all.n + eps);
}

// batchnorm.move_running: the variance unbiased. unbiased = M / (M - 1).

extern "C" __global__ void move_running(float* running_mean, float* running_var, const float* mean, const float* var, int C,
                                        float unbiased, float momentum) {
  int c = blockIdx.x * T + threadIdx.x;
  if (c >= C) return;
  running_mean[c] += momentum * (mean[c] - running_mean[c]);
  running_var[c] += momentum * (var[c] * unbiased - running_var[c]);
}

// y = (x - mean) scale [inv_std] + shift [+ shortcut], and the ReLU if wanted; mean, inv_std and shortcut may be null (0, 1,
// none). A NaN stays a NaN. Grid: pieces of all numbers.

template <int V>
__device__ __forceinline__ void scale_shift(const float* x, const float* mean, const float* inv_std, const float* scale,
                                            const float* shift, const float* shortcut, float* y, int C, int size, int relu) {
  for (size_t k = ((size_t)blockIdx.x * T + threadIdx.x) * V; k < size; k += (size_t)gridDim.x * T * V) {
    int c = (int)k % C;
    Channels<V> pixel(x + k), added;
    if (shortcut) added = Channels<V>(shortcut + k);
#pragma unroll
    for (int e = 0; e < V; e++) {
      float a = inv_std ? scale[c + e] * inv_std[c + e] : scale[c + e];
      float value = (pixel.v[e] - (mean ? mean[c + e] : 0.f)) * a + shift[c + e];
      if (shortcut) value += added.v[e];
      pixel.v[e] = relu && value < 0.f ? 0.f : value;
    }
    pixel.store(y + k);
  }
}

extern "C" __global__ void scale_shift_1(const float* x, const float* mean, const float* inv_std, const float* scale,
                                         const float* shift, const float* shortcut, float* y, int C, int size, int relu) {
  scale_shift<1>(x, mean, inv_std, scale, shift, shortcut, y, C, size, relu);
}

extern "C" __global__ void scale_shift_4(const float* x, const float* mean, const float* inv_std, const float* scale,
                                         const float* shift, const float* shortcut, float* y, int C, int size, int relu) {
  scale_shift<4>(x, mean, inv_std, scale, shift, shortcut, y, C, size, relu);
}

// The gradient, first the sums: gb = sum g, gw = sum g xhat with g = gy where y > 0 (everywhere when y is null) and
// xhat = (x - mean) * inv_std made again instead of kept.

template <int V>
__device__ __forceinline__ void normalize_grad_sums(const float* gy, const float* y, const float* x, const float* mean,
                                                    const float* inv_std, float* partial, int M, int C) {
  Place at(C, V);
  int c = at.channel(V);
  float b[V] = {}, w[V] = {};
  if (c < C) {
    Channels<V> center(mean + c);
#pragma unroll 4
    for (int m = blockIdx.y * at.lanes + at.lane; m < M; m += gridDim.y * at.lanes) {
      size_t k = (size_t)m * C + c;
      Channels<V> g(gy + k), pixel(x + k), passed;
      if (y) passed = Channels<V>(y + k);
#pragma unroll
      for (int e = 0; e < V; e++) {
        float one = !y || passed.v[e] > 0.f ? g.v[e] : 0.f;
        b[e] += one, w[e] += one * (pixel.v[e] - center.v[e]);
      }
    }
  }
  add_lanes<V>(at, b, w, inv_std, partial, C);
}

extern "C" __global__ void normalize_grad_sums_1(const float* gy, const float* y, const float* x, const float* mean,
                                                 const float* inv_std, float* partial, int M, int C) {
  normalize_grad_sums<1>(gy, y, x, mean, inv_std, partial, M, C);
}

extern "C" __global__ void normalize_grad_sums_4(const float* gy, const float* y, const float* x, const float* mean,
                                                 const float* inv_std, float* partial, int M, int C) {
  normalize_grad_sums<4>(gy, y, x, mean, inv_std, partial, M, C);
}

extern "C" __global__ void normalize_grad_final(const float* partial, float* gw, float* gb, int C, int slabs) {
  __shared__ float part_b[T], part_w[T];
  int c = blockIdx.x, t = threadIdx.x;
  float b = 0.f, w = 0.f;
  for (int s = t; s < slabs; s += T) b += partial[((size_t)s * C + c) * 2], w += partial[((size_t)s * C + c) * 2 + 1];
  part_b[t] = b, part_w[t] = w;
  for (int half = T / 2; half; half /= 2) {
    __syncthreads();
    if (t < half) part_b[t] += part_b[t + half], part_w[t] += part_w[t + half];
  }
  if (t == 0) gb[c] = part_b[0], gw[c] = part_w[0];
}

// ... and the pixels: gx = w inv_std (g - gb/M - xhat gw/M); the shortcut's gradient is g itself (null: not wanted).

template <int V>
__device__ __forceinline__ void normalize_grad_apply(const float* gy, const float* y, const float* x, const float* w,
                                                     const float* mean, const float* inv_std, const float* gw, const float* gb,
                                                     float* gx, float* gshortcut, int C, int size, float M) {
  for (size_t k = ((size_t)blockIdx.x * T + threadIdx.x) * V; k < size; k += (size_t)gridDim.x * T * V) {
    int c = (int)k % C;
    Channels<V> g(gy + k), pixel(x + k), passed;
    if (y) passed = Channels<V>(y + k);
#pragma unroll
    for (int e = 0; e < V; e++) {
      if (y && !(passed.v[e] > 0.f)) g.v[e] = 0.f;
      float s = inv_std[c + e], xhat = (pixel.v[e] - mean[c + e]) * s;
      pixel.v[e] = w[c + e] * s * (g.v[e] - gb[c + e] / M - xhat * (gw[c + e] / M));
    }
    pixel.store(gx + k);
    if (gshortcut) g.store(gshortcut + k);
  }
}

extern "C" __global__ void normalize_grad_apply_1(const float* gy, const float* y, const float* x, const float* w,
                                                  const float* mean, const float* inv_std, const float* gw, const float* gb,
                                                  float* gx, float* gshortcut, int C, int size, float M) {
  normalize_grad_apply<1>(gy, y, x, w, mean, inv_std, gw, gb, gx, gshortcut, C, size, M);
}

extern "C" __global__ void normalize_grad_apply_4(const float* gy, const float* y, const float* x, const float* w,
                                                  const float* mean, const float* inv_std, const float* gw, const float* gb,
                                                  float* gx, float* gshortcut, int C, int size, float M) {
  normalize_grad_apply<4>(gy, y, x, w, mean, inv_std, gw, gb, gx, gshortcut, C, size, M);
}
