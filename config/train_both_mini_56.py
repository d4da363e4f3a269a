# n56 on arithmetic and capital cities (paper, Table 1).
dataset, block_size, batch_size = "both_math_and_facts", 24, 576
n_layer, n_head, n_embd, mlp_expansion = 1, 1, 56, 1
dropout, weight_decay = 0.0, 0.0
learning_rate, min_lr = 1e-2, 1e-4
