// The CUDA kernels, compiled at run time by NVRTC for each REAL (float, double) and INDEX.
//
// Images are channels last, (n, h, w, c), and dense. Every kernel is correct for any grid: where
// nothing else is said a thread takes every (number of threads)-th element, in blocks of any size.
// Results are the same to the last bit in every run and for every grid: each element is written by
// one thread, and sums are added up in a fixed order, never by atomics.

typedef REAL real;

// What a kernel divides to find out where its element is: unsigned, or size_t where an array has
// 2^31 elements or more. Divisions of 64 bits take several times as long.
typedef INDEX Index;

const int THREADS = 256;  // in a block of the kernels that are launched as one block
const int TENSORS = 32;   // that one launch of an optimiser updates: parameters end at 4 KB

// Neighbouring numbers, which one instruction moves: at most 16 bytes.
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
    T element[N];
};
const int PACK = 16 / sizeof(real);

__device__ bool is_aligned(const void* memory) {
    return (unsigned long long)memory % 16 == 0;
}

// The first element of this thread, and how far it is to its next one.
__device__ long long first_index() {
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}
__device__ long long index_step() {
    return (long long)gridDim.x * blockDim.x;
}

// -- images and windows ---------------------------------------------------------------------------

// Image i of a batch is number chosen[i] = order[first + i] of all, and so is its label.
// x[i, p, q] = its pixel p + rows[first + i], q + columns[first + i] / 255, 0 outside; mirrored then.
extern "C" __global__ void gather_batch(
    const unsigned char* images, const long long* labels, const long long* order,
    const long long* rows, const long long* columns, const unsigned char* mirrored,
    long long first, const unsigned long long* live_first,
    float* x, long long* batch_labels, long long* chosen, long long n, int height, int width
) {
    if (live_first) first = live_first[0];
    const Index size = n * height * width;
    for (Index index = first_index(); index < size; index += index_step()) {
        const long long i = index / width / height, place = first + i;
        const int p = index / width % height, q = index % width;
        const long long number = order[place];
        if (p == 0 && q == 0) {
            chosen[i] = number;
            batch_labels[i] = labels[number];
        }
        const long long row = rows ? p + rows[place] : p;
        long long column = mirrored && mirrored[place] ? width - 1 - q : q;
        if (columns) column += columns[place];
        unsigned char pixel = 0;
        if (0 <= row && row < height && 0 <= column && column < width) {
            pixel = images[(number * height + row) * width + column];
        }
        x[index] = __fdiv_rn(pixel, 255.0f);  // rounded as numpy does, whatever the options
    }
}

// A convolution's or a pooling's windows over images (n, height, width, channels).
struct Window {
    int channels, height, width, out_height, out_width, kernel_height, kernel_width;
    int stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
};

// The kernels of windows take N channels at a time: PACK where the channels are whole packs and
// memory is aligned, else 1. Most instructions are divisions that find out where an element is, so
// single channels cost up to PACK times as much.

// index = ((image * height + row) * width + column) * channels + channel
struct Place {
    long long image;
    int row, column, channel;
};
__device__ Place place_of(Index index, int height, int width, int channels) {
    Place place;
    place.channel = index % channels;
    index /= channels;
    place.column = index % width;
    index /= width;
    place.row = index % height;
    place.image = index / height;
    return place;
}

template <int N>
__device__ void copy_windows(
    const Pack<real, N>* x, Pack<real, N>* columns, Window w, long long n
) {
    const int packs = w.channels / N;
    const Index size =
        n * w.out_height * w.out_width * w.kernel_height * w.kernel_width * packs;
    for (Index index = first_index(); index < size; index += index_step()) {
        // first the place in the window, with the window's number for the image's; then that one's
        const Place offset = place_of(index, w.kernel_height, w.kernel_width, packs);
        const Place out = place_of(offset.image, w.out_height, w.out_width, 1);
        const int p = out.row * w.stride_y - w.padding_y + offset.row * w.dilation_y;
        const int q = out.column * w.stride_x - w.padding_x + offset.column * w.dilation_x;
        Pack<real, N> copied = {};
        if (0 <= p && p < w.height && 0 <= q && q < w.width) {
            copied = x[((out.image * w.height + p) * w.width + q) * packs + offset.channel];
        }
        columns[index] = copied;
    }
}

// The window under each output position: (n, h, w, c) -> (n oh ow, kh kw c).
extern "C" __global__ void im2col(const real* x, real* columns, Window w, long long n) {
    if (w.channels % PACK == 0 && is_aligned(x) && is_aligned(columns)) {
        copy_windows((const Pack<real, PACK>*)x, (Pack<real, PACK>*)columns, w, n);
    } else {
        copy_windows((const Pack<real, 1>*)x, (Pack<real, 1>*)columns, w, n);
    }
}

// i where i * stride == position, for 0 <= i < size; else -1.
__device__ int window_at(int position, int stride, int size) {
    if (position < 0) return -1;
    // a division costs as much as twenty additions, and most convolutions have stride 1
    const int i = stride == 1 ? position : position / stride;
    return i < size && i * stride == position ? i : -1;
}

template <int N>
__device__ void add_windows(
    const Pack<real, N>* columns, Pack<real, N>* x, Window w, long long n
) {
    const int packs = w.channels / N;
    const Index size = n * w.height * w.width * packs;
    for (Index index = first_index(); index < size; index += index_step()) {
        const Place at = place_of(index, w.height, w.width, packs);
        Pack<real, N> sum = {};
        for (int u = 0; u < w.kernel_height; ++u) {
            const int p = at.row + w.padding_y - u * w.dilation_y;
            const int i = window_at(p, w.stride_y, w.out_height);
            if (i < 0) continue;
            for (int v = 0; v < w.kernel_width; ++v) {
                const int q = at.column + w.padding_x - v * w.dilation_x;
                const int j = window_at(q, w.stride_x, w.out_width);
                if (j < 0) continue;
                const long long row = (at.image * w.out_height + i) * w.out_width + j;
                const long long offset = (row * w.kernel_height + u) * w.kernel_width + v;
                const Pack<real, N> copied = columns[offset * packs + at.channel];
                for (int e = 0; e < N; ++e) sum.element[e] += copied.element[e];
            }
        }
        x[index] = sum;
    }
}

// The transpose of im2col: each element of x is the sum of its copies in the columns.
extern "C" __global__ void col2im(const real* columns, real* x, Window w, long long n) {
    if (w.channels % PACK == 0 && is_aligned(x) && is_aligned(columns)) {
        add_windows((const Pack<real, PACK>*)columns, (Pack<real, PACK>*)x, w, n);
    } else {
        add_windows((const Pack<real, 1>*)columns, (Pack<real, 1>*)x, w, n);
    }
}

template <int N>
__device__ void find_largest(
    const Pack<real, N>* x, Pack<real, N>* y, Pack<unsigned char, N>* winner, Window w, long long n
) {
    const real lowest = log((real)0);  // -inf, which has no name here without a header
    const int packs = w.channels / N;
    const Index size = n * w.out_height * w.out_width * packs;
    for (Index index = first_index(); index < size; index += index_step()) {
        const Place out = place_of(index, w.out_height, w.out_width, packs);
        Pack<real, N> largest;
        Pack<unsigned char, N> first = {};
        for (int e = 0; e < N; ++e) largest.element[e] = lowest;  // place 0 wins among -inf alone
        for (int u = 0; u < w.kernel_height; ++u) {
            const int p = out.row * w.stride_y - w.padding_y + u;
            if (p < 0 || p >= w.height) continue;
            for (int v = 0; v < w.kernel_width; ++v) {
                const int q = out.column * w.stride_x - w.padding_x + v;
                if (q < 0 || q >= w.width) continue;
                const long long pixel = (out.image * w.height + p) * w.width + q;
                const Pack<real, N> values = x[pixel * packs + out.channel];
                for (int e = 0; e < N; ++e) {
                    const real value = values.element[e];
                    const bool first_nan = isnan(value) && !isnan(largest.element[e]);
                    if (value > largest.element[e] || first_nan) {
                        largest.element[e] = value;  // a NaN stays: nothing is greater
                        first.element[e] = u * w.kernel_width + v;
                    }
                }
            }
        }
        y[index] = largest;
        winner[index] = first;
    }
}

// y = the largest of each window, winner = its place u kw + v: the first of equals, or the first NaN.
extern "C" __global__ void max_pool(
    const real* x, real* y, unsigned char* winner, Window w, long long n
) {
    if (w.channels % PACK == 0 && is_aligned(x) && is_aligned(y) && is_aligned(winner)) {
        find_largest(
            (const Pack<real, PACK>*)x, (Pack<real, PACK>*)y, (Pack<unsigned char, PACK>*)winner,
            w, n
        );
    } else {
        find_largest(
            (const Pack<real, 1>*)x, (Pack<real, 1>*)y, (Pack<unsigned char, 1>*)winner, w, n
        );
    }
}

template <int N>
__device__ void add_what_was_won(
    const Pack<real, N>* dy, const Pack<unsigned char, N>* winner, Pack<real, N>* dx,
    Window w, long long n
) {
    const int packs = w.channels / N;
    const Index size = n * w.height * w.width * packs;
    for (Index index = first_index(); index < size; index += index_step()) {
        const Place at = place_of(index, w.height, w.width, packs);
        Pack<real, N> sum = {};
        for (int u = 0; u < w.kernel_height; ++u) {
            const int i = window_at(at.row + w.padding_y - u, w.stride_y, w.out_height);
            if (i < 0) continue;
            for (int v = 0; v < w.kernel_width; ++v) {
                const int j = window_at(at.column + w.padding_x - v, w.stride_x, w.out_width);
                if (j < 0) continue;
                const long long row = (at.image * w.out_height + i) * w.out_width + j;
                const Pack<unsigned char, N> first = winner[row * packs + at.channel];
                const Pack<real, N> gradient = dy[row * packs + at.channel];
                const int here = u * w.kernel_width + v;
                for (int e = 0; e < N; ++e) {
                    if (first.element[e] == here) sum.element[e] += gradient.element[e];
                }
            }
        }
        dx[index] = sum;
    }
}

// dx = the sum of dy over the windows that each element has won.
extern "C" __global__ void max_pool_gradient(
    const real* dy, const unsigned char* winner, real* dx, Window w, long long n
) {
    if (w.channels % PACK == 0 && is_aligned(dy) && is_aligned(winner) && is_aligned(dx)) {
        add_what_was_won(
            (const Pack<real, PACK>*)dy, (const Pack<unsigned char, PACK>*)winner,
            (Pack<real, PACK>*)dx, w, n
        );
    } else {
        add_what_was_won(
            (const Pack<real, 1>*)dy, (const Pack<unsigned char, 1>*)winner, (Pack<real, 1>*)dx,
            w, n
        );
    }
}

// -- dense layers ---------------------------------------------------------------------------------

// y[r, o] += bias[o].
extern "C" __global__ void add_bias(real* y, const real* bias, long long rows, int outputs) {
    const Index size = rows * outputs;
    for (Index index = first_index(); index < size; index += index_step()) {
        y[index] += bias[index % outputs];
    }
}

// sums[b, o] = the sum of x[r, o] over the b-th chunk of rows. Blocks of (32, 8): 32 columns each.
extern "C" __global__ void sum_rows(
    const real* x, real* sums, long long rows, int outputs, long long chunk
) {
    __shared__ real partial[8][32];
    const int across = threadIdx.x, down = threadIdx.y;
    const long long chunks = rows > 0 ? (rows + chunk - 1) / chunk : 1;  // no rows: one sum, 0
    for (long long b = blockIdx.y; b < chunks; b += gridDim.y) {
        const long long end = (b + 1) * chunk < rows ? (b + 1) * chunk : rows;
        for (long long left = blockIdx.x * 32LL; left < outputs; left += gridDim.x * 32LL) {
            const long long column = left + across;
            real sum = 0;
            if (column < outputs) {
                for (long long row = b * chunk + down; row < end; row += 8) {
                    sum += x[row * outputs + column];
                }
            }
            partial[down][across] = sum;
            __syncthreads();
            if (down == 0 && column < outputs) {
                for (int other = 1; other < 8; ++other) sum += partial[other][across];
                sums[b * outputs + column] = sum;
            }
            __syncthreads();  // `partial` is written again in the next turn
        }
    }
}

// -- activation and dropout -----------------------------------------------------------------------

// y = x where x > 0, else slope x.
extern "C" __global__ void leaky_relu(const real* x, real* y, long long size, double slope) {
    for (long long i = first_index(); i < size; i += index_step()) {
        y[i] = x[i] > 0 ? x[i] : x[i] * (real)slope;
    }
}

// dx = dy where signed_ > 0, else slope dy. signed_ is x, or for slope >= 0 also y.
extern "C" __global__ void leaky_relu_gradient(
    const real* signed_, const real* dy, real* dx, long long size, double slope
) {
    for (long long i = first_index(); i < size; i += index_step()) {
        dx[i] = signed_[i] > 0 ? dy[i] : dy[i] * (real)slope;
    }
}

struct Block {
    unsigned long long word[4];
};

// Block `counter` of the random stream of a key: Philox4x64-10 (Salmon et al., 2011).
__device__ Block philox(
    unsigned long long counter, unsigned long long key0, unsigned long long key1
) {
    const unsigned long long multiplier0 = 0xd2e7470ee14c6c93, multiplier1 = 0xca5a826395121157;
    Block c = {{counter, 0, 0, 0}};
    for (int round = 0; round < 10; ++round) {
        const unsigned long long high0 = __umul64hi(multiplier0, c.word[0]);
        const unsigned long long high1 = __umul64hi(multiplier1, c.word[2]);
        const unsigned long long low0 = multiplier0 * c.word[0], low1 = multiplier1 * c.word[2];
        c = {{high1 ^ c.word[1] ^ key0, low1, high0 ^ c.word[3] ^ key1, low0}};
        key0 += 0x9e3779b97f4a7c15;
        key1 += 0xbb67ae8584caa73b;
    }
    return c;
}

// y = scale x where the random 16 bits of an element are at least `least`, else 0 x.
extern "C" __global__ void dropout(
    const real* x, real* y, long long size, unsigned int least, double scale,
    unsigned long long seed, unsigned long long call, const unsigned long long* live_key
) {
    const unsigned long long key0 = live_key ? live_key[0] : seed;
    const unsigned long long key1 = live_key ? live_key[1] : call;
    const bool packed = is_aligned(x) && is_aligned(y);
    // a thread takes 16 elements at a time: one block of random bits
    for (long long i = first_index(); i * 16 < size; i += index_step()) {
        Block bits = philox(i + 1, key0, key1);  // numpy counts before it draws
        const long long start = i * 16;
        if (packed && start + 16 <= size) {  // a quarter of the loads and stores, or half
#pragma unroll
            for (int k = 0; k < 16; k += PACK) {
                Pack<real, PACK> values = *(const Pack<real, PACK>*)(x + start + k);
#pragma unroll
                for (int e = 0; e < PACK; ++e) {
                    const unsigned int drawn = bits.word[(k + e) / 4] >> (k + e) % 4 * 16 & 0xffff;
                    values.element[e] *= drawn >= least ? (real)scale : (real)0;
                }
                *(Pack<real, PACK>*)(y + start + k) = values;
            }
        } else {
#pragma unroll
            for (int k = 0; k < 16; ++k) {
                const unsigned int drawn = bits.word[k / 4] >> k % 4 * 16 & 0xffff;
                if (start + k < size) {
                    y[start + k] = x[start + k] * (drawn >= least ? (real)scale : (real)0);
                }
            }
        }
    }
}

// -- loss and metrics -----------------------------------------------------------------------------

// The sum over the block's threads, in a fixed order, for thread 0. Once in a kernel.
__device__ double block_sum(double value) {
    __shared__ double partial[THREADS];
    const int thread = threadIdx.x;
    partial[thread] = value;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) partial[thread] += partial[thread + half];
    }
    return partial[thread];
}

// A label that is out of range counts as class 0.
__device__ int class_of(long long label, int k) {
    return 0 <= label && label < k ? label : 0;
}

// softmax(logits), and the mean or sum of the cross-entropies. One block of 256 threads.
extern "C" __global__ void softmax_cross_entropy(
    const real* logits, const long long* labels, real* softmax, real* loss,
    long long n, int k, double smoothing, int mean, int* fault
) {
    if (blockIdx.x > 0) return;
    double sum = 0;
    for (long long row = threadIdx.x; row < n; row += THREADS) {
        const real* x = logits + row * k;
        real* probability = softmax + row * k;
        const int label = class_of(labels[row], k);
        if (label != labels[row]) *fault = 1;
        real largest = x[0];
        for (int c = 1; c < k; ++c) {
            if (x[c] > largest) largest = x[c];
        }
        real total = 0, shifts = 0;
        for (int c = 0; c < k; ++c) {
            const real shifted = x[c] - largest;  // exp never overflows
            const real exponential = exp(shifted);
            probability[c] = exponential;
            total += exponential;
            shifts += shifted;
        }
        for (int c = 0; c < k; ++c) probability[c] /= total;
        real row_loss = log(total) - (real)(1 - smoothing) * (x[label] - largest);
        if (smoothing != 0) row_loss -= (real)smoothing * (shifts / k);  // shifts may be -inf
        sum += row_loss;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) loss[0] = mean ? sum / n : sum;
}

// dlogits = (softmax - target) dy / divisor.
extern "C" __global__ void softmax_cross_entropy_gradient(
    const real* softmax, const long long* labels, const real* dy, real* dlogits,
    long long n, int k, double smoothing, double divisor
) {
    const real scale = dy[0] / (real)divisor;
    const real on_label = 1 - smoothing, on_each = smoothing / k;
    const Index size = n * k;
    for (Index index = first_index(); index < size; index += index_step()) {
        real gradient = softmax[index];
        if ((int)(index % k) == class_of(labels[index / k], k)) gradient -= on_label;
        dlogits[index] = (gradient - on_each) * scale;
    }
}

// Adds to totals: loss n, right answers, steps before the first loss that is not finite; [3] = 1
// from that one on. One block of 256 threads.
extern "C" __global__ void metrics(
    const real* logits, const long long* labels, const real* loss, double* totals,
    long long n, int k
) {
    if (blockIdx.x > 0) return;
    double right = 0;
    for (long long row = threadIdx.x; row < n; row += THREADS) {
        const real* x = logits + row * k;
        int first = 0;  // of the largest; a NaN counts as the largest
        for (int c = 1; c < k && !isnan(x[first]); ++c) {
            if (x[c] > x[first] || isnan(x[c])) first = c;
        }
        if (first == labels[row]) right += 1;
    }
    right = block_sum(right);
    if (threadIdx.x == 0) {
        totals[0] += (double)loss[0] * n;
        totals[1] += right;
        if (!isfinite(loss[0])) totals[3] = 1;
        if (totals[3] == 0) totals[2] += 1;
    }
}

// -- optimisers -----------------------------------------------------------------------------------
// The block's y is the number of the tensor. Factors are computed in double and rounded once.

struct Tensors {
    real* theta[TENSORS];
    const real* gradient[TENSORS];
    real* velocity[TENSORS];  // null without momentum
    long long size[TENSORS];
    double lr[TENSORS], weight_decay[TENSORS], momentum[TENSORS];
    int nesterov[TENSORS];
    int count;
};

// SGD of optim.py: v = momentum v + lr (g + weight_decay theta), then theta -= v.
extern "C" __global__ void momentum_step(Tensors t, const double* live_lr) {
    for (int i = blockIdx.y; i < t.count; i += gridDim.y) {
        real* theta = t.theta[i];
        const real* gradient = t.gradient[i];
        real* velocity = t.velocity[i];
        const double rate = live_lr ? live_lr[i] : t.lr[i];
        const real lr = rate, decay = rate * t.weight_decay[i], momentum = t.momentum[i];
        const bool nesterov = t.nesterov[i];
        const long long size = t.size[i];
        for (long long e = first_index(); e < size; e += index_step()) {
            real step = gradient[e] * lr;
            if (decay != 0) step += theta[e] * decay;
            if (velocity) {
                const real v = velocity[e] * momentum + step;
                velocity[e] = v;
                step = nesterov ? step + momentum * v : v;
            }
            theta[e] -= step;
        }
    }
}

struct Moments {
    real* theta[TENSORS];
    const real* gradient[TENSORS];
    real* mean[TENSORS];
    real* square[TENSORS];
    long long size[TENSORS];
    double lr[TENSORS], beta1[TENSORS], beta2[TENSORS], eps[TENSORS], weight_decay[TENSORS];
    double correction1[TENSORS], correction2[TENSORS];  // 1 - beta^t
    int decoupled[TENSORS];                             // weight decay as AdamW has it
    int count;
};

// Adam and AdamW of optim.py. `live` has lr, correction1, correction2 of each tensor, or is null.
extern "C" __global__ void adam_step(Moments m, const double* live) {
    for (int i = blockIdx.y; i < m.count; i += gridDim.y) {
        real* theta = m.theta[i];
        const real* gradient = m.gradient[i];
        real* mean = m.mean[i];
        real* square = m.square[i];
        const double rate = live ? live[3 * i] : m.lr[i];
        const double correction1 = live ? live[3 * i + 1] : m.correction1[i];
        const real correction2 = live ? live[3 * i + 2] : m.correction2[i];
        const real lr = rate / correction1, eps = m.eps[i];
        const real beta1 = m.beta1[i], rest1 = 1 - m.beta1[i];
        const real beta2 = m.beta2[i], rest2 = 1 - m.beta2[i];
        const real decay = m.weight_decay[i], shrink = 1 - rate * m.weight_decay[i];
        const bool decoupled = m.decoupled[i];
        const long long size = m.size[i];
        for (long long e = first_index(); e < size; e += index_step()) {
            real value = theta[e], g = gradient[e];
            if (decoupled) {
                value *= shrink;
            } else if (decay != 0) {
                g += decay * value;
            }
            const real average = mean[e] * beta1 + rest1 * g;
            const real average_square = square[e] * beta2 + rest2 * (g * g);
            mean[e] = average;
            square[e] = average_square;
            theta[e] = value - lr * average / (sqrt(average_square / correction2) + eps);
        }
    }
}

// -- what a captured graph reads ------------------------------------------------------------------

struct Values {
    unsigned long long word[64];
};

// slots[i] = v.word[i]: a copy to the device that comes with the launch itself.
extern "C" __global__ void write_live(unsigned long long* slots, Values v, int count) {
    for (long long i = first_index(); i < count; i += index_step()) {
        slots[i] = v.word[i];
    }
}
