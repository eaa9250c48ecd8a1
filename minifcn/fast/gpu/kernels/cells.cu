// The head and the loss in cells: the transposed convolution with kernel 2S and stride S, the softmax, the loss of every pixel
// and its gradient, without ever writing the logits as an image.
//
//     +----+----+----+        Cut the enlarged map (with its padding) into cells of S x S pixels. A kernel of 2S covers 2 x 2
//     |    |    |    |        cells, so cell (i, j) is painted by the inputs (i-1, j-1), (i-1, j), (i, j-1) and (i, j) alone:
//     +----+----+----+
//     |    | ij |    |        z[(n,i,j), (k,p,q)] = sum over a, b, c of x[n, i-a, j-b, c] w[c, k, a*S + p, b*S + q] + bias[k]
//     +----+----+----+
//
// One product: inputs (cells, 4C + 1 and zeros up to `width`) times kernel (width, K*S*S); the last input is 1 and its row of
// the kernel the bias. cells_loss then turns each z into softmax - onehot where it lies, and two products more are the
// gradients.
// Source: Shi et al. 2016, arXiv 1609.05158 (sub-pixel convolution).

#include "common.cuh"

// x (N, OH, OW, C) -> inputs (N, OH + 1, OW + 1, width), by a, b, c; zero beyond the edge.

extern "C" __global__ void cells_inputs(const float* x, float* inputs, int N, int C, int OH, int OW, int width) {
  int k = blockIdx.x * T + threadIdx.x;
  if (k >= N * (OH + 1) * (OW + 1) * width) return;
  int place = k % width, cell = k / width, j = cell % (OW + 1), i = cell / (OW + 1) % (OH + 1), n = cell / (OW + 1) / (OH + 1);
  int c = place % C, b = place / C % 2, a = place / C / 2;
  float value = place == 4 * C ? 1.f : 0.f;
  if (a < 2 && i - a >= 0 && i - a < OH && j - b >= 0 && j - b < OW) value = x[(((size_t)n * OH + i - a) * OW + j - b) * C + c];
  inputs[k] = value;
}

// The gradient of the inputs: each input adds four numbers from its four cells, times the gradient of the loss.

extern "C" __global__ void cells_inputs_grad(const float* ginputs, const float* gloss, float* gx, int N, int C, int OH, int OW,
                                             int width) {
  int k = blockIdx.x * T + threadIdx.x;
  if (k >= N * OH * OW * C) return;
  int c = k % C, j = k / C % OW, i = k / C / OW % OH, n = k / C / OW / OH;
  float sum = 0.f;
  for (int a = 0; a < 2; a++)
    for (int b = 0; b < 2; b++)
      sum += ginputs[(((size_t)n * (OH + 1) + i + a) * (OW + 1) + j + b) * width + (2 * a + b) * C + c];
  gx[k] = *gloss * sum;
}

// w (C, K, 2SH, 2SW) and bias (K), null for none -> kernel (width, K, SH, SW).

extern "C" __global__ void cells_kernel(const float* w, const float* bias, float* kernel, int C, int K, int SH, int SW,
                                        int width) {
  int at = blockIdx.x * T + threadIdx.x;
  if (at >= width * K * SH * SW) return;
  int q = at % SW, p = at / SW % SH, k = at / SW / SH % K, row = at / SW / SH / K, c = row % C, b = row / C % 2,
      a = row / C / 2;
  float value = row == 4 * C && bias ? bias[k] : 0.f;
  if (a < 2) value = w[(((size_t)c * K + k) * 2 * SH + a * SH + p) * 2 * SW + b * SW + q];
  kernel[at] = value;
}

extern "C" __global__ void cells_kernel_grad(const float* gkernel, const float* gloss, float* gw, int C, int K, int SH,
                                             int SW) {
  int at = blockIdx.x * T + threadIdx.x;
  if (at >= C * K * 4 * SH * SW) return;
  int v = at % (2 * SW), u = at / (2 * SW) % (2 * SH), k = at / (4 * SW * SH) % K, c = at / (4 * SW * SH) / K;
  int row = (u / SH * 2 + v / SW) * C + c;
  gw[at] = *gloss * gkernel[(((size_t)row * K + k) * SH + u % SH) * SW + v % SW];
}

// A block takes one cell, a thread every T-th of its pixels; the K logits of a pixel lie SH*SW apart, so that neighbouring
// threads read neighbours. z becomes softmax - onehot, and 0 where the pixel lies outside of the H x W labels or is ignored. A
// label that is no class makes the loss NaN. sums[cell] = loss of the cell; counts[cell] = (pixels right, pixels that count).

extern "C" __global__ void cells_loss(float* z, const unsigned char* labels, float* sums, int* counts, int OH, int OW, int K,
                                      int SH, int SW, int PH, int PW, int H, int W, int ignore_index) {
  __shared__ float losses[T];
  __shared__ int right[T], counted[T];
  int cell = blockIdx.x, j = cell % (OW + 1), i = cell / (OW + 1) % (OH + 1), n = cell / (OW + 1) / (OH + 1), S = SH * SW;
  float loss = 0.f;
  int hits = 0, valid = 0;
  for (int r = threadIdx.x; r < S; r += T) {
    float* logits = z + (size_t)cell * K * S + r;
    int h = i * SH + r / SW - PH, s = j * SW + r % SW - PW, label = ignore_index;
    if (h >= 0 && h < H && s >= 0 && s < W) label = labels[((size_t)n * H + h) * W + s];
    if (label == ignore_index) {
      for (int k = 0; k < K; k++) logits[(size_t)k * S] = 0.f;
      continue;
    }
    float top = logits[0], sum = 0.f;
    int first = 0;
    for (int k = 1; k < K; k++) {
      float one = logits[(size_t)k * S];
      if (one > top) top = one, first = k;                                // strictly: the first of equals
    }
    for (int k = 0; k < K; k++) sum += expf(logits[(size_t)k * S] - top);
    float chosen = label < K ? logits[(size_t)label * S] : __int_as_float(0x7fffffff), share = 1.f / sum;
    loss += top - chosen + logf(sum), hits += first == label, valid++;
    for (int k = 0; k < K; k++) {
      float* one = logits + (size_t)k * S;
      *one = label < K ? expf(*one - top) * share - (k == label ? 1.f : 0.f) : chosen;
    }
  }
  losses[threadIdx.x] = loss, right[threadIdx.x] = hits, counted[threadIdx.x] = valid;
  for (int half = T / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      losses[threadIdx.x] += losses[threadIdx.x + half];
      right[threadIdx.x] += right[threadIdx.x + half], counted[threadIdx.x] += counted[threadIdx.x + half];
    }
  }
  if (threadIdx.x == 0) sums[cell] = losses[0], counts[2 * cell] = right[0], counts[2 * cell + 1] = counted[0];
}

// z -> the map (N, H, W, K) of the logits, which predictions need.

extern "C" __global__ void cells_map(const float* z, float* y, int N, int OH, int OW, int K, int SH, int SW, int PH, int PW,
                                     int H, int W) {
  int at = blockIdx.x * T + threadIdx.x;
  if (at >= N * H * W * K) return;
  int k = at % K, s = at / K % W + PW, h = at / K / W % H + PH, n = at / K / W / H;
  size_t cell = ((size_t)n * (OH + 1) + h / SH) * (OW + 1) + s / SW;
  y[at] = z[(cell * K + k) * SH * SW + h % SH * SW + s % SW];
}
