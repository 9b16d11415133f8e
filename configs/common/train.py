"""Settings of the training loop, read by train_net.py."""

train = dict(
    output_dir="./output",
    # A path, a URL, detectron2://…, timm://mvitv2_tiny, or empty to train from scratch.
    init_checkpoint="",
    # Stop if a tensor of init_checkpoint or of the model is unexpectedly left over.
    strict=False,
    max_iter=67500,
    # The total batch that optimizer.lr, max_iter and the periods are for: if it is given, they are
    # scaled linearly to that of dataloader.train. 64 for the recipes here.
    reference_batch=None,
    # Instead of max_iter, and of eval_period and checkpointer.period.
    epochs=None,
    eval_epochs=None,
    # dtype: float16 or bfloat16. A CPU that multiplies bfloat16 trains in that; others in float32.
    amp=dict(enabled=True, dtype="float16"),
    ddp=dict(
        broadcast_buffers=False,
        find_unused_parameters=False,
        fp16_compression=True,
    ),
    checkpointer=dict(period=5000, max_to_keep=100),
    eval_period=5000,
    log_period=20,
    # Make two steps and a short evaluation, say what the run will need, and leave nothing behind.
    dry_run=False,
    # Weights & Biases and MLflow beside TensorBoard: ["wandb", "mlflow"].
    loggers=[],
    device="cuda",
    # Compile the blocks when they first run, by torch.compile.
    compile=False,
    # Replay the backbone as CUDA graphs in --eval-only, on a GPU.
    cuda_graphs=False,
    # Replay it in training, forward and backward, and in the evaluations between.
    cuda_graphs_in_training=False,
    # What computes in --eval-only: torch; or on a CPU openvino (fp32, bf16) or onnxruntime (fp32).
    runtime="torch",
    runtime_precision="fp32",
    # -1 draws another seed for each run, which its checkpoints keep.
    seed=-1,
    # model_best.pth is the checkpoint with the highest, such as bbox/AP; null keeps none.
    best_metric=None,
    # Evaluations in a row without a better one after which the run ends; null trains to the end.
    patience=None,
    # Whether a training or an evaluation ends with report.html in its folder.
    report=True,
    # Parts into which a batch is cut for less memory; their gradients are summed.
    accumulate=1,
    # Share the model's parts, gradients and optimizer among the processes (FSDP2), for size H.
    fsdp=False,
    # The largest L2 norm of all gradients together; null does not limit it.
    clip_norm=None,
    # A moving average of the weights, evaluated beside them and saved as model_ema.pth. warmup lets
    # the decay grow with the iteration, for short runs.
    model_ema=dict(enabled=False, decay=0.9999, warmup=False),
    # Steps in a row that are skipped because their loss is not finite.
    max_non_finite_steps=0,
    # Images that cannot be read and are replaced by others, in each process.
    max_unreadable=0,
    # Seconds in which each process must get to its next step; a dead one is noticed sooner.
    peer_timeout=1800.0,
)
