// The functions for recurrent networks that cuDNN 9 removed and Jittor's RNN operators call: here
// they fail, and the operator raises CUDNN_STATUS_NOT_SUPPORTED.
#pragma once
#include "_cudnn/cudnn.h"
#if CUDNN_MAJOR >= 9
#define DETR_REMOVED(name) \
    template <class... T> \
    inline cudnnStatus_t name(T &&...) { \
        return CUDNN_STATUS_NOT_SUPPORTED; \
    }
DETR_REMOVED(cudnnSetRNNDescriptor_v6)
DETR_REMOVED(cudnnGetRNNParamsSize)
DETR_REMOVED(cudnnGetRNNWorkspaceSize)
DETR_REMOVED(cudnnGetRNNTrainingReserveSize)
DETR_REMOVED(cudnnGetRNNLinLayerMatrixParams)
DETR_REMOVED(cudnnGetRNNLinLayerBiasParams)
DETR_REMOVED(cudnnRNNForwardTraining)
DETR_REMOVED(cudnnRNNForwardInference)
DETR_REMOVED(cudnnRNNBackwardData)
DETR_REMOVED(cudnnRNNBackwardWeights)
#undef DETR_REMOVED
#endif
