#!/bin/sh
# dvc-modelver hook: written by 'modelver install', removed by 'modelver uninstall'.
# MODELVER_SKIP=1 in the environment switches it off for one command.
python=@PYTHON@
probe=@PROBE@

modelver_hook() { # run the part in Python: the interpreter that installed this, else the program on PATH
    if [ -x "$python" ] && [ -r "$probe" ]; then
        MODELVER_GIT_PID=$PPID "$python" -P -m dvc_modelver.drivers.hooks "$@"
    elif command -v modelver >/dev/null 2>&1; then
        MODELVER_GIT_PID=$PPID modelver hook "$@"
    else
        echo "modelver: program not found, models are not looked after (pip install dvc-modelver; modelver install)" >&2
        return 127
    fi
}

modelver_asked() { # true when this Git process asked our fsmonitor hook already
    pid=
    { read -r pid <"${GIT_DIR:-.git}/modelver/asked"; } 2>/dev/null
    [ "$pid" = "$PPID" ]
}

modelver_moved() { # true when a model, its metadata or its pointer is not as we last saw it
    [ -x "$python" ] && [ -r "$probe" ] || return 1
    ! "$python" -I -S "$probe" check
}

modelver_touches() { # true when 'git diff <args>' touches a pointer, metadata or a model file
    ! git -c core.fsmonitor=false diff --no-ext-diff --quiet "$@" -- '*.dvc' 'dvc.lock' '*/dvc.lock' \
        '*.modelver.json' '*.modelver.tensors' .modelver.toml ':(icase)*.safetensors' ':(icase)*.pt' \
        ':(icase)*.pth' ':(icase)*.ckpt' ':(icase)*.keras' ':(icase)*.onnx' ':(icase)*.gguf' ':(icase)*.tflite' \
        ':(icase)*.npz' ':(icase)*.h5' ':(icase)*.hdf5' ':(icase)*.bin' ':(icase)*.pkl' ':(icase)*.joblib' \
        ':(icase)*.dill' ':(icase)*.mar' ':(icase)*.nemo' ':(icase)*.npy' ':(icase)*.p' ':(icase)*.pb' \
        ':(icase)*.pickle' 2>/dev/null
}

