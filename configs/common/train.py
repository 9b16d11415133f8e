"""Settings of the training loop, read by train_net.py."""

train = dict(
    output_dir="./output",
    # A path, a URL, detectron2://…, timm://mvitv2_tiny, or empty to train from scratch.
    init_checkpoint="",
    # Stop if a tensor of init_checkpoint or of the model is unexpectedly left over.
    strict=False,
    max_iter=67500,
    # Mixed precision on GPUs; a CPU trains in float32. dtype: float16 or bfloat16.
    amp=dict(enabled=True, dtype="float16"),
    ddp=dict(
        broadcast_buffers=False,
        find_unused_parameters=False,
        fp16_compression=True,
    ),
    checkpointer=dict(period=5000, max_to_keep=100),
    eval_period=5000,
    log_period=20,
    device="cuda",
    # Replay the backbone as CUDA graphs in --eval-only, on a GPU.
    cuda_graphs=False,
    # -1 selects another random seed in each run.
    seed=-1,
)
