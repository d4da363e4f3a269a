# MLT on arithmetic for 1.5 million iterations: does it grok? (Appendix B)
include("train_math_mini_mlt.py")
max_iters = 1_500_000
lr_decay_iters = 10_000_000
learning_rate = 1e-6
min_lr = 1e-7
