// The CUDA kernels of the GPU path, to be read beside the array functions that they stand in for (named above each).
//
// One rule throughout: a thread owns what it writes. It looks up everything that flows into its element (a gather), so no
// two threads write one address, no atomics are needed, and the result does not depend on the order of the threads.
// Arrays are C-contiguous NCHW. Sizes need not divide anything: each kernel leaves the ragged rest to an `if`.
// All blocks have T threads in x. launch.py compiles this file on first use and checks every argument against it.
// Read after head.py; read next launch.py.

#define T 256
#define MINUS_INFINITY __int_as_float(0xff800000)          // NVRTC has no <math.h>

// ================================================================ convolution
//
// The columns of n images side by side, so that one large product does the whole batch:
//
//                      image 0        image 1            column p = (n, i, j): one position of the window
//     row (c,u,v)   . . . . . . .  . . . . . . .         row r = (c, u, v): one tap of the kernel
//                   . . x . . . .  . . . . . . .         cols[r][p] = x[n, c, i*SH + u*DH - PH, j*SW + v*DW - PW]
//
// conv.im2col. A thread takes one position and walks over kernel rows (c, u), KW stores each: neighbouring threads write
// neighbouring addresses, and the divisions that take p apart are done once. Grid: positions x slices of the kernel rows.

extern "C" __global__ void im2col(const float* x, float* cols, int N, int C, int H, int W, int KH, int KW, int OH, int OW,
                                  int SH, int SW, int PH, int PW, int DH, int DW) {
  int p = blockIdx.x * T + threadIdx.x, positions = N * OH * OW;
  if (p >= positions) return;
  int j = p % OW, i = p / OW % OH, n = p / (OW * OH);
  int left = j * SW - PW, top = i * SH - PH;
  for (int row = blockIdx.y; row < C * KH; row += gridDim.y) {
    int c = row / KH, u = row % KH, h = top + u * DH;
    const float* line = x + (((size_t)n * C + c) * H + h) * W;
    float* out = cols + (size_t)row * KW * positions + p;
    for (int v = 0; v < KW; v++, out += positions) {
      int w = left + v * DW;
      *out = h >= 0 && h < H && w >= 0 && w < W ? line[w] : 0.f;
    }
  }
}

// A pixel at padded row r = h + P is read by the windows i with 0 <= r - i*S <= D*(K-1), at tap u = (r - i*S) / D:
//
//     S = 2, K = 3     window 0  |u0 u1 u2|             row 2 is tap 2 of window 0 and tap 0 of window 1,
//                      window 1        |u0 u1 u2|       row 3 is tap 1 of window 1 alone
//                 padded row r    0  1  2  3  4
//
// first_window(r) .. last_window(r) are those i: ceil(K/S) of them, 2 even for the 64 x 64 stride-32 head.

__device__ int first_window(int r, int span, int S) { return r <= span ? 0 : (r - span + S - 1) / S; }
__device__ int last_window(int r, int S, int O) { return min(r / S, O - 1); }

// conv.col2im. A thread takes one pixel (n, c, h, w) and adds up every column entry that im2col would have filled from it.
// Grid: planes (n, c) x positions in the plane.

extern "C" __global__ void col2im(const float* cols, float* x, int N, int C, int H, int W, int KH, int KW, int OH, int OW,
                                  int SH, int SW, int PH, int PW, int DH, int DW) {
  int q = blockIdx.y * T + threadIdx.x;
  if (q >= H * W) return;
  int plane = blockIdx.x, c = plane % C, n = plane / C, r = q / W + PH, s = q % W + PW;
  int i0 = first_window(r, DH * (KH - 1), SH), i1 = last_window(r, SH, OH);
  int j0 = first_window(s, DW * (KW - 1), SW), j1 = last_window(s, SW, OW);
  size_t positions = (size_t)N * OH * OW;
  float sum = 0.f;
  for (int i = i0; i <= i1; i++) {
    if ((r - i * SH) % DH) continue;
    int u = (r - i * SH) / DH;
    for (int j = j0; j <= j1; j++) {
      if ((s - j * SW) % DW) continue;
      int v = (s - j * SW) / DW;
      sum += cols[((size_t)(c * KH + u) * KW + v) * positions + (n * OH + i) * OW + j];
    }
  }
  x[(size_t)plane * H * W + q] = sum;
}

// ================================================================ batch normalisation
//
// A channel of NCHW is N runs of HW contiguous pixels. Its sums are taken in two steps, always in the same order:
//
//     channel c   [ image 0 ][ image 1 ][ image 2 ] ...       block (c, slab): T threads, each every (T*slabs)-th pixel,
//                  0 1 2 3 0  1 2 3 0 1  2 3 0 1 2            then a tree over the T threads      -> partial[c][slab]
//                                                             one thread a channel adds the slabs -> (C,)

struct Pixels {                       // the pixels of channel c that one thread of block (c, slab) visits
  int n, r, step_n, step_r, N, HW;
  size_t C, c;
  __device__ Pixels(int N, int C, int HW) : N(N), HW(HW), C(C), c(blockIdx.x) {
    int first = blockIdx.y * T + threadIdx.x, step = gridDim.y * T;
    n = first / HW, r = first % HW, step_n = step / HW, step_r = step % HW;
  }
  __device__ bool inside() const { return n < N; }
  __device__ size_t at() const { return (n * C + c) * HW + r; }
  __device__ void next() {            // no division on the way
    n += step_n, r += step_r;
    if (r >= HW) r -= HW, n++;
  }
};

// Mean and centred sum of squares of n numbers; two such are merged without cancellation (Chan, Golub & LeVeque 1983).
struct Moments { float n, mean, squares; };

__device__ Moments merged(Moments a, Moments b) {
  float n = a.n + b.n, d = b.mean - a.mean;
  if (n == 0.f) return a;
  return {n, a.mean + d * (b.n / n), a.squares + b.squares + d * d * (a.n * b.n / n)};
}

// batchnorm.normalize, mean and variance, x read once. A thread subtracts its own first value k, so that its sum of squares
// is small: mean = k + a/n, squares = b - a*a/n with a = sum(x - k), b = sum((x - k)^2). Means are kept relative to the
// channel's first pixel until the end, since their differences count and not their size.

extern "C" __global__ void moments(const float* x, float* partial, int N, int C, int HW) {
  __shared__ Moments part[T];
  int t = threadIdx.x;
  float k = 0.f, a = 0.f, b = 0.f, n = 0.f, origin = x[(size_t)blockIdx.x * HW];
  Pixels p(N, C, HW);
  if (p.inside()) k = x[p.at()];
#pragma unroll 4
  for (; p.inside(); p.next()) {
    float d = x[p.at()] - k;
    a += d, b += d * d, n += 1.f;
  }
  part[t] = n == 0.f ? Moments{0.f, 0.f, 0.f} : Moments{n, k - origin + a / n, b - a * (a / n)};
  for (int half = T / 2; half; half /= 2) {
    __syncthreads();
    if (t < half) part[t] = merged(part[t], part[t + half]);
  }
  if (t == 0) {
    float* out = partial + 3 * (blockIdx.x * gridDim.y + blockIdx.y);
    out[0] = part[0].n, out[1] = part[0].mean, out[2] = part[0].squares;
  }
}

extern "C" __global__ void moments_final(const float* x, const float* partial, float* mean, float* var, float* inv_std,
                                         int C, int HW, int slabs, float eps) {
  int c = blockIdx.x * T + threadIdx.x;
  if (c >= C) return;
  Moments all = {0.f, 0.f, 0.f};
  for (int s = 0; s < slabs; s++) {
    const float* in = partial + 3 * (c * slabs + s);
    all = merged(all, {in[0], in[1], in[2]});
  }
  mean[c] = x[(size_t)c * HW] + all.mean, var[c] = all.squares / all.n, inv_std[c] = 1.f / sqrtf(all.squares / all.n + eps);
}

// batchnorm.scale_shift, .normalize and .normalize_add_relu: y = (x - mean) * scale + shift [+ shortcut] [then max with 0],
// mean and shortcut null where there is none. Reads each array once. Grid: planes (n, c) x slices of the plane.

extern "C" __global__ void scale_shift(const float* x, const float* mean, const float* scale, const float* shift,
                                       const float* shortcut, float* y, int C, int HW, int relu) {
  int c = blockIdx.x % C;
  float m = mean ? mean[c] : 0.f, a = scale[c], b = shift[c];
  size_t plane = (size_t)blockIdx.x * HW;
  for (int r = blockIdx.y * T + threadIdx.x; r < HW; r += gridDim.y * T) {
    float v = (x[plane + r] - m) * a + b;
    if (shortcut) v += shortcut[plane + r];
    y[plane + r] = relu && v < 0.f ? 0.f : v;
  }
}

// batchnorm.normalize_grad and .normalize_add_relu_grad, sums: gb = sum g, gw = sum g xhat with g = gy where y > 0
// (everywhere when y is null), xhat = (x - mean) * inv_std made again instead of kept.

extern "C" __global__ void normalize_grad_sums(const float* gy, const float* y, const float* x, const float* mean,
                                               const float* inv_std, float* partial, int N, int C, int HW) {
  __shared__ float part_b[T], part_w[T];
  int t = threadIdx.x;
  float m = mean[blockIdx.x], b = 0.f, w = 0.f;
#pragma unroll 4
  for (Pixels p(N, C, HW); p.inside(); p.next()) {
    float g = !y || y[p.at()] > 0.f ? gy[p.at()] : 0.f;
    b += g, w += g * (x[p.at()] - m);
  }
  part_b[t] = b, part_w[t] = w * inv_std[blockIdx.x];
  for (int half = T / 2; half; half /= 2) {
    __syncthreads();
    if (t < half) part_b[t] += part_b[t + half], part_w[t] += part_w[t + half];
  }
  if (t == 0) {
    float* out = partial + 2 * (blockIdx.x * gridDim.y + blockIdx.y);
    out[0] = part_b[0], out[1] = part_w[0];
  }
}

extern "C" __global__ void normalize_grad_final(const float* partial, float* gw, float* gb, int C, int slabs) {
  int c = blockIdx.x * T + threadIdx.x;
  if (c >= C) return;
  float b = 0.f, w = 0.f;
  for (int s = 0; s < slabs; s++) b += partial[2 * (c * slabs + s)], w += partial[2 * (c * slabs + s) + 1];
  gw[c] = w, gb[c] = b;
}

// ... and pixels: gx = w inv_std (g - gb/M - xhat gw/M), M = N*HW; the shortcut's gradient is g itself (null: not wanted).

extern "C" __global__ void normalize_grad_apply(const float* gy, const float* y, const float* x, const float* w,
                                                const float* mean, const float* inv_std, const float* gw, const float* gb,
                                                float* gx, float* gshortcut, int C, int HW, float M) {
  int c = blockIdx.x % C;
  float m = mean[c], s = inv_std[c], mean_g = gb[c] / M, mean_gxhat = gw[c] / M, scale = w[c] * s;
  size_t plane = (size_t)blockIdx.x * HW;
  for (int r = blockIdx.y * T + threadIdx.x; r < HW; r += gridDim.y * T) {
    float g = !y || y[plane + r] > 0.f ? gy[plane + r] : 0.f;
    gx[plane + r] = scale * (g - mean_g - (x[plane + r] - m) * s * mean_gxhat);
    if (gshortcut) gshortcut[plane + r] = g;
  }
}

// ================================================================ max-pooling
//
// pool.maximum_of_windows. A thread takes one output pixel and keeps the first largest of its window in row-major order
// (a strict comparison) and that tap's number u*KW + v, one byte. Padding is -inf: it is simply not visited.
// Grid: planes (n, c) x positions in the plane.

extern "C" __global__ void max_pool(const float* x, float* y, unsigned char* tap, int H, int W, int KH, int KW, int OH, int OW,
                                    int SH, int SW, int PH, int PW) {
  int q = blockIdx.y * T + threadIdx.x;
  if (q >= OH * OW) return;
  const float* plane = x + (size_t)blockIdx.x * H * W;
  int top = q / OW * SH - PH, left = q % OW * SW - PW, best = max(-top, 0) * KW + max(-left, 0);
  float top_value = MINUS_INFINITY;
  for (int h = max(top, 0); h < min(top + KH, H); h++)
    for (int w = max(left, 0); w < min(left + KW, W); w++) {
      float v = plane[h * W + w];
      if (v > top_value) best = (h - top) * KW + w - left;
      if (v > top_value || v != v) top_value = v;                        // a NaN stays a NaN
    }
  y[(size_t)blockIdx.x * OH * OW + q] = top_value;
  tap[(size_t)blockIdx.x * OH * OW + q] = best;
}

// pool.maximum_of_windows_grad. A thread takes one input pixel and adds gy of every window that contains it and whose
// recorded tap is this pixel: 4 windows at most for K = 3, S = 2, instead of atomics from the windows to the pixels.

extern "C" __global__ void max_pool_grad(const float* gy, const unsigned char* tap, float* gx, int H, int W, int KH, int KW,
                                         int OH, int OW, int SH, int SW, int PH, int PW) {
  int q = blockIdx.y * T + threadIdx.x;
  if (q >= H * W) return;
  size_t plane = (size_t)blockIdx.x * OH * OW;
  int r = q / W + PH, s = q % W + PW;
  int i1 = last_window(r, SH, OH), j1 = last_window(s, SW, OW);
  float sum = 0.f;
  for (int i = first_window(r, KH - 1, SH); i <= i1; i++)
    for (int j = first_window(s, KW - 1, SW); j <= j1; j++)
      if (tap[plane + i * OW + j] == (r - i * SH) * KW + s - j * SW) sum += gy[plane + i * OW + j];
  gx[(size_t)blockIdx.x * H * W + q] = sum;
}

// ================================================================ softmax and negative log-likelihood
//
// loss.softmax_nll. A thread takes one pixel; its K logits lie HW apart, so that neighbouring threads read neighbours:
//
//     class 0   . . . . . . .      top = max_c x_c, rest = log sum_c exp(x_c - top): kept apart, a sum of 1e9 and 1 loses the 1
//     class 1   . . . . . . .      nll = top - x_target + rest
//     class 2   . . . . . . .      the second walk down the column finds it in the cache
//       thread  0 1 2 3 4 5 6

extern "C" __global__ void softmax_nll(const float* x, const long long* target, float* nll, float* top, float* rest,
                                       int pixels, int K, int HW) {
  int q = blockIdx.x * T + threadIdx.x;
  if (q >= pixels) return;
  const float* column = x + (size_t)(q / HW) * K * HW + q % HW;
  float largest = column[0], sum = 0.f;
  for (int c = 1; c < K; c++) largest = fmaxf(largest, column[(size_t)c * HW]);
  for (int c = 0; c < K; c++) sum += expf(column[(size_t)c * HW] - largest);
  top[q] = largest, rest[q] = logf(sum);
  nll[q] = largest - column[(size_t)target[q] * HW] + logf(sum);
}

// loss.softmax_nll_grad: gx_c = g (exp(x_c - top - rest) - [c == target]), exactly 0 where g is 0.

extern "C" __global__ void softmax_nll_grad(const float* g, const float* x, const long long* target, const float* top,
                                            const float* rest, float* gx, int pixels, int K, int HW) {
  int q = blockIdx.x * T + threadIdx.x;
  if (q >= pixels) return;
  size_t column = (size_t)(q / HW) * K * HW + q % HW;
  float scale = g[q], largest = top[q], logarithm = rest[q];
  int t = (int)target[q];
  for (int c = 0; c < K; c++) {
    size_t at = column + (size_t)c * HW;
    gx[at] = scale == 0.f ? 0.f : scale * (expf(x[at] - largest - logarithm) - (c == t ? 1.f : 0.f));
  }
}

// ================================================================ gradient descent
//
// descent.descend: one parameter as a flat run of n numbers, read and written once; v is null without momentum.

extern "C" __global__ void sgd(float* w, const float* g, float* v, int n, float lr, float momentum, float weight_decay) {
  int i = blockIdx.x * T + threadIdx.x;
  if (i >= n) return;
  float step = g[i] + weight_decay * w[i];
  if (v) step = v[i] = momentum * v[i] + step;
  w[i] -= lr * step;
}
