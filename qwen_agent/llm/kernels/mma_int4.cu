// One to eight rows of activations times a 4-bit matrix, on the tensor cores. See mma_int4.py for the layout.
//
// Why not Triton: the codes are stored in the order in which a lane of mma.m16n8k16 holds its operand, so that they
// go from memory to the tensor core through registers alone, at 1.3 instructions a weight. Triton would move them
// through shared memory first.
//
// Compiled for each product with:
//   ROWS, K           the matrix (ROWS of the result: half of the matrix for SWIGLU)
//   GROUPS, PARTS     groups of scales in a row; groups in a block of 128 columns (1, 2 or 4)
//   TOKENS            rows of x, 1 to 8
//   BLOCKS            blocks of 16 rows in a program (2 for SWIGLU: gate and up)
//   WARPS, DEPTH      warps that share the columns; blocks of columns requested ahead
//   NORM              0: x is float16 [TOKENS, K]; 1: x is the residual stream, float32 [K], to be normalized
//   AFTER             0 store, 1 add bias, 2 add to y, 3 SwiGLU
//   OFFSETS           1 if zero points differ from 8
//   WEIGHT, OUT       types of norm and bias, and of y: FLOAT, HALF or BFLOAT
//   PDL               1 for programmatic dependent launch

#define FLOAT 0
#define HALF 1
#define BFLOAT 2

typedef unsigned int u32;
typedef unsigned short u16;

constexpr int COLUMN_BLOCKS = (K + 127) / 128;
constexpr int THREADS = WARPS * 32;
constexpr int STEPS_PER_PART = 8 / PARTS;

#if WEIGHT == FLOAT
typedef float weight_t;
#else
typedef u16 weight_t;
#endif
#if OUT == FLOAT
typedef float out_t;
#else
typedef u16 out_t;
#endif

__device__ __forceinline__ float from_half(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

template <int KIND, typename T>
__device__ __forceinline__ float widen(T bits) {
  if constexpr (KIND == FLOAT) return bits;
  else if constexpr (KIND == HALF) return from_half(bits);
  else return __uint_as_float((u32)bits << 16);
}

__device__ __forceinline__ out_t narrow(float value) {
#if OUT == FLOAT
  return value;
#elif OUT == HALF
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(fminf(fmaxf(value, -65504.f), 65504.f)));
  return bits;
#else
  u16 bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#endif
}

__device__ __forceinline__ u32 two_halves(float low, float high) {
  u32 pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Eight codes of a word -> the four registers of an A operand, each two float16 numbers q - 8.
__device__ __forceinline__ void decode(u32 word, u32 (&a)[4]) {
  const u32 magic = 0x64006400, centre = 0x64086408, sixteenth = 0x2C002C00, shift = 0xD480D480;
  const u32 high = word >> 8;
  u32 w[4];
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(w[0]) : "r"(word), "n"(0x000F000F), "r"(magic));
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(w[1]) : "r"(word), "n"(0x00F000F0), "r"(magic));
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(w[2]) : "r"(high), "n"(0x000F000F), "r"(magic));
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(w[3]) : "r"(high), "n"(0x00F000F0), "r"(magic));
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(a[0]) : "r"(w[0]), "r"(centre));
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(a[1]) : "r"(w[1]), "r"(sixteenth), "r"(shift));
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(a[2]) : "r"(w[2]), "r"(centre));
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(a[3]) : "r"(w[3]), "r"(sixteenth), "r"(shift));
}

__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float4 four(const weight_t* from) {
#if WEIGHT == FLOAT
  return *(const float4*)from;
#else
  // Volatile, so that it stays where it stands: before the wait.
  u32 low, high;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(low), "=r"(high) : "l"(from));
  return make_float4(widen<WEIGHT>((u16)low), widen<WEIGHT>((u16)(low >> 16)), widen<WEIGHT>((u16)high),
                     widen<WEIGHT>((u16)(high >> 16)));
#endif
}

// What a lane needs of one block of 16 rows and 128 columns: 64 codes, and the scales of rows g and g + 8.
struct Piece {
  uint4 words[2];
  u16 scales[PARTS][2];
#if OFFSETS
  u16 offsets[PARTS][2];
#endif
};

// Relaxed rather than non-coherent: the assembler moves the latter below the wait for the kernel in front.
__device__ __forceinline__ uint4 streamed(const uint4* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__device__ __forceinline__ void fetch(Piece& piece, const uint4* words, const u16* scales, const u16* offsets,
                                      int row_block, int column_block, int lane) {
  const long block = (long)row_block * COLUMN_BLOCKS + column_block;
  piece.words[0] = streamed(words + block * 64 + lane);
  piece.words[1] = streamed(words + block * 64 + 32 + lane);
  const int g = lane >> 2;
#pragma unroll
  for (int part = 0; part < PARTS; part++) {
    // A row has one scale for several blocks where a group is longer than 128 columns.
    const int group = PARTS > 1 ? column_block * PARTS + part : column_block * GROUPS / COLUMN_BLOCKS;
    const long at = ((long)row_block * GROUPS + group) * 16 + g;
    const bool known = PARTS == 1 || group < GROUPS;
    piece.scales[part][0] = known ? scales[at] : 0;
    piece.scales[part][1] = known ? scales[at + 8] : 0;
#if OFFSETS
    piece.offsets[part][0] = known ? offsets[at] : 0;
    piece.offsets[part][1] = known ? offsets[at + 8] : 0;
#endif
  }
}

__device__ __forceinline__ int row_block_of(int r) {
#if AFTER == 3
  return blockIdx.x + r * (ROWS / 16);
#else
  return blockIdx.x * BLOCKS + r;
#endif
}

// x and y are not __restrict__: that would let the compiler read x before the kernel in front has written it.
extern "C" __global__ void __launch_bounds__(THREADS)
mma_int4(const void* x, const weight_t* __restrict__ norm, const uint4* __restrict__ words,
         const u16* __restrict__ scales, const u16* __restrict__ offsets, const weight_t* __restrict__ bias, out_t* y,
         float eps) {
#if PDL
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;

  // The first pieces are on their way before the kernel in front has finished: weights are constant.
  Piece ahead[DEPTH][BLOCKS];
#pragma unroll
  for (int d = 0; d < DEPTH; d++)
    if (warp + d * WARPS < COLUMN_BLOCKS)
#pragma unroll
      for (int r = 0; r < BLOCKS; r++)
        fetch(ahead[d][r], words, scales, offsets, row_block_of(r), warp + d * WARPS, lane);

#if NORM
  constexpr int PER = (COLUMN_BLOCKS * 128 + THREADS * 4 - 1) / (THREADS * 4);
  float4 gains[PER];
#pragma unroll
  for (int i = 0; i < PER; i++) {
    const int k = (i * THREADS + threadIdx.x) * 4;
    gains[i] = k < K ? four(norm + k) : make_float4(0.f, 0.f, 0.f, 0.f);
  }
#endif

#if PDL
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif

  constexpr int RESULTS = (AFTER == 3 ? 1 : BLOCKS) * 16 * TOKENS;
  static_assert(RESULTS <= THREADS, "a thread stores at most one result");
  const int in_block = threadIdx.x % 16, which = threadIdx.x / 16 % (RESULTS / 16 / TOKENS);
  const int token = threadIdx.x / (RESULTS / TOKENS);
  const int row_out = (AFTER == 3 ? blockIdx.x : row_block_of(which)) * 16 + in_block;
  const bool stores = threadIdx.x < RESULTS && row_out < ROWS;
  out_t* const target = y + (long)token * ROWS + row_out;
  float added = 0.f;  // asked for now, needed at the end
#if AFTER == 1
  if (stores) added = widen<WEIGHT>(bias[row_out]);
#elif AFTER == 2
  if (stores) added = *target;
#endif

#if NORM
  // x / rms(x) * norm, as float16, once for the program.
  __shared__ __align__(16) u32 entries[COLUMN_BLOCKS * 64];
  __shared__ float powers[WARPS];
  float4 mine[PER];
  float power = 0.f;
#pragma unroll
  for (int i = 0; i < PER; i++) {
    const int k = (i * THREADS + threadIdx.x) * 4;
    mine[i] = k < K ? *(const float4*)((const float*)x + k) : make_float4(0.f, 0.f, 0.f, 0.f);
    power += mine[i].x * mine[i].x + mine[i].y * mine[i].y + mine[i].z * mine[i].z + mine[i].w * mine[i].w;
  }
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) power += __shfl_xor_sync(~0u, power, offset);
  if (lane == 0) powers[warp] = power;
  __syncthreads();
  power = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) power += powers[w];
  const float factor = rsqrtf(power / K + eps);
#pragma unroll
  for (int i = 0; i < PER; i++) {
    const int k = (i * THREADS + threadIdx.x) * 4;
    if (k < COLUMN_BLOCKS * 128)
      *(uint2*)(entries + k / 2) =
          make_uint2(two_halves(mine[i].x * factor * gains[i].x, mine[i].y * factor * gains[i].y),
                     two_halves(mine[i].z * factor * gains[i].z, mine[i].w * factor * gains[i].w));
  }
  __syncthreads();
#else
  const u16* row = (const u16*)x + (long)(g < TOKENS ? g : TOKENS - 1) * K;
#endif

  float total[BLOCKS][4] = {};
  for (int block = warp; block < COLUMN_BLOCKS; block += WARPS) {
    uint4 b[4];  // x of 8 steps: two registers each
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const int k = block * 128 + q * 32 + t * 8;
#if NORM
      b[q] = *(const uint4*)(entries + k / 2);
#else
      b[q] = (K % 128 == 0 || k < K) ? *(const uint4*)(row + k) : make_uint4(0, 0, 0, 0);
#endif
    }
#pragma unroll
    for (int r = 0; r < BLOCKS; r++) {
      const Piece piece = ahead[0][r];
#pragma unroll
      for (int d = 0; d + 1 < DEPTH; d++) ahead[d][r] = ahead[d + 1][r];
      if (block + DEPTH * WARPS < COLUMN_BLOCKS)
        fetch(ahead[DEPTH - 1][r], words, scales, offsets, row_block_of(r), block + DEPTH * WARPS, lane);
      const u32 w[8] = {piece.words[0].x, piece.words[0].y, piece.words[0].z, piece.words[0].w,
                        piece.words[1].x, piece.words[1].y, piece.words[1].z, piece.words[1].w};
#pragma unroll
      for (int part = 0; part < PARTS; part++) {
        float c[4] = {0.f, 0.f, 0.f, 0.f};
#if OFFSETS
        float ones[4] = {0.f, 0.f, 0.f, 0.f};  // the sum of x, in every row
        const u32 one[4] = {0x3C003C00, 0x3C003C00, 0x3C003C00, 0x3C003C00};
#endif
#pragma unroll
        for (int i = 0; i < STEPS_PER_PART; i++) {
          const int step = part * STEPS_PER_PART + i;
          const u32 b0 = step % 2 ? b[step / 2].z : b[step / 2].x, b1 = step % 2 ? b[step / 2].w : b[step / 2].y;
          u32 a[4];
          decode(w[step], a);
          mma(c, a, b0, b1);
#if OFFSETS
          mma(ones, one, b0, b1);
#endif
        }
        const float s0 = from_half(piece.scales[part][0]), s1 = from_half(piece.scales[part][1]);
        total[r][0] += c[0] * s0;
        total[r][1] += c[1] * s0;
        total[r][2] += c[2] * s1;
        total[r][3] += c[3] * s1;
#if OFFSETS
        const float o0 = from_half(piece.offsets[part][0]), o1 = from_half(piece.offsets[part][1]);
        total[r][0] += ones[0] * o0;
        total[r][1] += ones[1] * o0;
        total[r][2] += ones[2] * o1;
        total[r][3] += ones[3] * o1;
#endif
      }
    }
  }

  // The warps' shares, added in a fixed order.
  __shared__ float4 shares[WARPS][BLOCKS][32];
#pragma unroll
  for (int r = 0; r < BLOCKS; r++)
    shares[warp][r][lane] = make_float4(total[r][0], total[r][1], total[r][2], total[r][3]);
  __syncthreads();
  if (!stores) return;
  const int from = (in_block % 8) * 4 + token / 2, element = (in_block / 8) * 2 + token % 2;
  float result = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) result += ((const float*)&shares[w][which][from])[element];
#if AFTER == 3
  float up = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) up += ((const float*)&shares[w][1][from])[element];
  result = result / (1.f + __expf(-result)) * up;
#endif
  *target = narrow(result + added);
}

#ifdef WRITE_OUT
// The matrix itself, in the type OUT: a warp writes 16 rows of 128 columns.
extern "C" __global__ void __launch_bounds__(128)
write_out_int4(const uint4* __restrict__ words, const u16* __restrict__ scales, const u16* __restrict__ offsets,
               u16* out) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int tile = blockIdx.x * 4 + (threadIdx.x >> 5);
  const int row_block = tile / COLUMN_BLOCKS, column_block = tile % COLUMN_BLOCKS;
  if (row_block * 16 >= ROWS) return;
  Piece piece;
  fetch(piece, words, scales, offsets, row_block, column_block, lane);
  const u32 w[8] = {piece.words[0].x, piece.words[0].y, piece.words[0].z, piece.words[0].w,
                    piece.words[1].x, piece.words[1].y, piece.words[1].z, piece.words[1].w};
#pragma unroll
  for (int q = 0; q < 4; q++) {
    const int part = q * PARTS / 4, k = column_block * 128 + q * 32 + t * 8;
    u32 a[2][4];
    decode(w[2 * q], a[0]);
    decode(w[2 * q + 1], a[1]);
#pragma unroll
    for (int half = 0; half < 2; half++) {  // rows g and g + 8
      const float scale = from_half(piece.scales[part][half]);
#if OFFSETS
      const float offset = from_half(piece.offsets[part][half]);
#else
      const float offset = 0.f;
#endif
      u32 packed[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const u32 pair = a[i / 2][half + 2 * (i % 2)];
        const u16 low = narrow(from_half((u16)pair) * scale + offset);
        const u16 high = narrow(from_half((u16)(pair >> 16)) * scale + offset);
        packed[i] = low | (u32)high << 16;
      }
      const int row = row_block * 16 + g + 8 * half;
      if (row < ROWS && k < K)
        *(uint4*)(out + (long)row * K + k) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
    }
  }
}
#endif
