// Copyright 2026 The gemma-surgery authors. SPDX-License-Identifier: Apache-2.0
//
// Stands in for an Apple SDK header where eval_gpu is type-checked on other systems.

#pragma once

typedef struct dispatch_queue_s* dispatch_queue_t;
typedef struct dispatch_data_s* dispatch_data_t;
