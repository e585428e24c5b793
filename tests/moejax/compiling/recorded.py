"""What jax 0.10.2 and CUDA 12.9 print for compute capability 9.0, shortened."""

# A decoding program: what comes before its loop, and a turn of it, a graph broken by an all-reduce.
THUNKS = """\
001: kCopy          [source       | next=003 (1)] kCopy
003: kWhile         [prev=001 (1) | sink        ]   \n\
condition:
    006: kCustomKernel [source | sink] loop_and_fusion grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
  body:
    008: kPartitionId   [source       | next=010 (1)] kPartitionId
    000: kCommandBuffer [prev=010 (1) | next=022 (1)] \n\
        013: kCustomKernel [prev=011 (2) | next=014 (1)] gemm_fusion_dot_8 grid: [768, 1, 1] threads: [64, 1, 1]  \
shared_memory: 768 bytes
        014: kCopy         [source       | next=026 (2)] kCopy
    022: kAllReduce     [prev=000 (1) | next=000 (1)] kAllReduce
    000: kCommandBuffer [prev=022 (1) | next=035 (1)] \n\
        031: kCustomKernel [prev=030 (1) | next=032 (1)] few_tokens_gate_up grid: [28, 8, 1] threads: [128, 1, 1]  \
shared_memory: 110592 bytes
"""
# A loop that the host drives, within the step: what attention of prompts has.
HOST_LOOP = """\
    040: kWhile         [prev=000 (1) | next=045 (1)]   \n\
condition:
        041: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1] threads: [1, 1, 1]  \
shared_memory: 0 bytes
      body:
        000: kCommandBuffer [source | sink] \n\
            042: kCustomKernel [source | sink] gemm_fusion_dot_8 grid: [768, 1, 1] threads: [64, 1, 1]  \
shared_memory: 768 bytes
"""
OVERLAP = """\
    050: kAsyncStart    [prev=003 (1)  | next=000 (6)] stream=communication_stream[0], async_id=50
        051: kAllReduce [source | sink] kAllReduce
    052: kCustomKernel  [prev=008 (1)  | next=000 (2)] loop_cosine_fusion grid: [1024, 1, 1] threads: [128, 1, 1]  \
shared_memory: 0 bytes
    053: kAsyncDone     [source        | sink        ] async_id=50
"""
METADATA = """\
thunk_metadata {
  thunk_info {
    profile_annotation: "gemm_fusion_dot.8"
    thunk_id: 13
  }
  thunk_kind: "kCustomKernel"
}
thunk_metadata {
  thunk_info {
    profile_annotation: "command_buffer_23"
  }
  thunk_kind: "kCommandBuffer"
}
thunk_metadata {
  thunk_info {
    profile_annotation: "pallas_call.49"
    thunk_id: 31
  }
  thunk_kind: "kCustomKernel"
}
"""
HLO = """\
HloModule jit_decode, is_scheduled=true

%gemm_fusion_dot.8_computation (parameter_0: bf16[8,4096], parameter_1: bf16[768,4096]) -> f32[8,768] {
  %parameter_0 = bf16[8,4096]{1,0} parameter(0)
  %dot.1 = f32[8,768]{1,0} dot(%parameter_0, %parameter_1), metadata={op_name="jit(decode)/while/body/attention/dot"}
}

ENTRY %main (p: bf16[8,4096]) -> f32[8,768] {
  %gemm_fusion_dot.8 = f32[8,768]{1,0} fusion(%p, %w), kind=kCustom, calls=%gemm_fusion_dot.8_computation, metadata={\
scheduling_name="gemm_fusion_dot.8"}
  ROOT %pallas_call.49 = (bf16[16,14336]{1,0}) custom-call(%gemm_fusion_dot.8), \
custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(decode)/while/body/moe/shard_map/pallas_call" \
scheduling_name="pallas_call.49"}
}
"""
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'few_tokens_gate_up' for 'sm_90a'
ptxas info    : Function properties for few_tokens_gate_up
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers
"""
SPILLS = PTXAS.replace("0 bytes spill stores, 0 bytes spill loads", "16 bytes spill stores, 24 bytes spill loads")
# A loop of asynchronous copies: what a turn issues is waited for two turns later. One copy is never carried out.
COPIES = """\
	.headerflags	@"EF_CUDA_SM90"
few_tokens_gate_up:
.text.few_tokens_gate_up:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*00b0*/              @!P0 LDG.E R0, desc[UR20][R2.64] ;
.L_x_0:
        /*1380*/                   DEPBAR.LE SB0, 0x2 ;
        /*1390*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*16c0*/                   HGMMA.64x16x16.F32.BF16 R24, gdesc[UR12], R24 ;
        /*1910*/                   WARPGROUP.DEPBAR.LE gsb0, 0x2 ;
        /*1960*/                   LDGSTS.E.BYPASS.128 [R57+0x18000], desc[UR20][R50.64+0x200], P2 ;
        /*19a0*/                   LDGSTS.E.BYPASS.128 [R57+0x18400], desc[UR20][R52.64+0x200], !PT ;
        /*1a10*/                   LDGSTS.E.BYPASS.128 [R68+0x400], desc[UR20][R56.64], !P1 ;
        /*1ce0*/                   LDGDEPBAR ;
        /*1cf0*/               @P1 BRA `(.L_x_0) ;
        /*1d00*/                   EXIT ;
"""
DROPPED = "".join(line for line in COPIES.splitlines(keepends=True) if "R68+0x400" not in line)
# A loop of loads into registers, one of which is sunk below the arithmetic on the other.
REGISTERS = """\
one_token_gate_up:
.L_x_7:
        /*0930*/                   LDG.E.EF.128 R28, desc[UR4][R36.64] ;
        /*0940*/                   LDG.E.EF.64 R24, desc[UR4][R40.64] ;
        /*0b30*/                   FMUL R20, R91, R29 ;
        /*0b50*/                   FADD R71, R20, R71 ;
        /*0d00*/                   LDG.E.EF.128 R44, desc[UR4][R34.64] ;
        /*0d10*/                   FFMA R21, R90, R25, R21 ;
        /*0d20*/                   FADD R4, R47, R4 ;
        /*0e00*/              @!P0 BRA 0x930 ;
        /*0f00*/                   STL [R1], R4 ;
"""
