# n14 on arithmetic (paper, Table 1).
dataset, block_size, batch_size = "as_math", 9, 882
n_layer, n_head, n_embd, mlp_expansion = 1, 1, 14, 1
dropout, weight_decay = 0.0, 0.0
learning_rate, min_lr = 1e-2, 1e-4
