"""Names that no model needs, and that hand over the machine.

They run code or programs, look other names up, load another pickle, read or write files, or talk to the network. A
module stands for everything in it and below it. What `allowed` lists by its exact name is asked first, so that
``io.BytesIO`` is fine where all else of ``io`` is not.

Sources: the library reference of Python 3.13; the advisories of fickling, modelscan and picklescan up to 2026 for
names that scanners had missed.
"""

from __future__ import annotations

from collections.abc import Mapping

_RUNS_CODE = "runs code that the file brings along"
_RUNS_PROGRAMS = "runs programs"
_LOOKS_UP = "reaches any function by its name"
_LOADS = "loads another pickle or module"
_FILES = "reads or writes any file"
_NETWORK = "opens connections"
_MEMORY = "reaches the memory of the process"

_MODULES_BY_REASON = {
    _RUNS_CODE: (
        "IPython _interpreters _pyrepl _testcapi _xxsubinterpreters bdb cProfile cloudpickle code codeop compileall "
        "concurrent.interpreters dill distutils doctest idlelib ipykernel jinja2 lib2to3 mako numba numexpr "
        "numpy.distutils numpy.f2py numpy.testing pdb profile py_compile pytest _pytest rlcompleter setuptools "
        "sympy.core.sympify sympy.parsing test.support timeit trace turtledemo unittest venv torch._dynamo "
        "torch._inductor torch._lazy torch.fx torch.jit.unsupported_tensor_ops torch.testing "
        "torch.utils._config_module torch.utils.bottleneck torch.utils.collect_env torch.utils.cpp_extension "
        "torch.utils.data.datapipes"
    ),
    _RUNS_PROGRAMS: (
        "_aix_support _osx_support _posixsubprocess _winapi antigravity asyncio commands ensurepip fabric git invoke "
        "multiprocessing nt os paramiko pexpect pip pipes platform plumbum popen2 posix ptyprocess pty sh subprocess "
        "torch.distributed.elastic torch.distributed.launch torch.distributed.rpc torch.distributed.run "
        "torch.multiprocessing uuid webbrowser winreg"
    ),
    _LOOKS_UP: (
        "_frozen_importlib _frozen_importlib_external _imp _operator _sitebuiltins gc imp importlib inspect operator "
        "pkg_resources pkgutil pydoc site six.moves sys zipimport"
    ),
    _LOADS: (
        "_pickle cPickle copyreg joblib.externals joblib.memory joblib.parallel jsonpickle klepto marshal pickle "
        "pickletools ruamel runpy shelve torch.hub torch.package yaml"
    ),
    _FILES: (
        "_io _sqlite3 bz2 dbm filecmp fileinput fsspec genericpath glob gzip h5py io linecache logging.config "
        "logging.handlers lzma mailbox mmap ntpath numpy.ctypeslib numpy.lib._datasource numpy.lib._npyio_impl "
        "numpy.lib.format numpy.lib.npyio pathlib posixpath shutil sqlite3 syslog tarfile tempfile tokenize zipapp "
        "zipfile"
    ),
    _NETWORK: (
        "_socket _ssl aiohttp boto3 botocore cgi ftplib http httplib httpx huggingface_hub imaplib nntplib poplib "
        "requests s3fs select selectors smtpd smtplib socket socketserver SocketServer ssl telnetlib twisted urllib "
        "urllib2 urllib3 websocket websockets wsgiref xmlrpc xmlrpclib"
    ),
    _MEMORY: "_cffi_backend _ctypes _signal _thread atexit cffi ctypes faulthandler signal threading",
}

_NAMES_BY_REASON = {
    _RUNS_CODE: {
        "builtins": "__build_class__ breakpoint compile eval exec execfile help input reload",
        "functools": "reduce",
        "pandas": "eval",
        "pandas.core.computation.eval": "eval",
        "torch": "compile",
        "types": "BuiltinMethodType CodeType FunctionType LambdaType MethodType ModuleType new_class",
        "typing": "ForwardRef _eval_type evaluate_forward_ref get_type_hints",
        "weakref": "finalize",
    },
    _LOOKS_UP: {
        "builtins": "__import__ __loader__ __spec__ apply delattr dir getattr globals locals setattr vars",
    },
    _LOADS: {
        "joblib": "load",
        "joblib.numpy_pickle": "load load_temporary_memmap",
        "keras.models": "load_model model_from_json",
        "keras.saving": "deserialize_keras_object load_model",
        "keras.src.saving.saving_api": "load_model",
        "numpy": "fromregex genfromtxt load loadtxt",
        "pandas": "read_pickle",
        "pandas.io.pickle": "read_pickle",
        "sklearn.utils.parallel": "Parallel",
        "tensorflow.keras.models": "load_model",
        "torch": "classes load ops",
        "torch.jit": "load",
        "torch.jit._serialization": "load",
        "torch.serialization": "_legacy_load _load load",
    },
    _FILES: {
        "builtins": "copyright credits exit license open print quit",
        "codecs": "open",
        "logging": "FileHandler basicConfig",
        "numpy": "DataSource fromfile memmap save savetxt savez savez_compressed",
        "torch": "from_file save",
        "torch.jit": "save",
        "torch.jit._serialization": "save",
        "torch.serialization": "save",
    },
    _NETWORK: {
        "keras.src.utils.file_utils": "get_file",
        "keras.utils": "get_file",
        "tensorflow.keras.utils": "get_file",
    },
}

_ALIASES = {"__builtin__": "builtins", "__builtins__": "builtins"}

_MODULES: Mapping[str, str] = {
    module: reason for reason, modules in _MODULES_BY_REASON.items() for module in modules.split()
}
_NAMES: Mapping[tuple[str, str], str] = {
    (module, name): reason
    for reason, table in _NAMES_BY_REASON.items()
    for module, names in table.items()
    for name in names.split()
}
_INNER = frozenset(
    {"__bases__", "__builtins__", "__class__", "__closure__", "__code__", "__dict__", "__func__", "__getattribute__",
     "__globals__", "__init__", "__loader__", "__mro__", "__reduce__", "__reduce_ex__", "__self__", "__spec__",
     "__subclasses__", "__wrapped__"}
)  # fmt: skip


def find_danger(module: str, name: str) -> str | None:
    """Say what makes a name dangerous; None where these tables do not know it.

    Args:
        module: Dotted.
        name: In that module; with dots where it goes through the attributes of something there, which may be a
            module that it has imported (``some.module`` and ``os.system``).
    """
    module = _ALIASES.get(module, module)
    parts = name.split(".")
    path = [*module.split("."), *parts]
    for end in range(len(path), 0, -1):
        if (reason := _MODULES.get(".".join(path[:end]))) is not None:
            return reason
    if len(parts) > 1 and not _INNER.isdisjoint(parts):
        return _LOOKS_UP
    for owner, part in zip([module, *parts], parts, strict=False):
        if (reason := _NAMES.get((owner, part))) is not None:
            return reason
    return next((_MODULES[part] for part in parts[:-1] if part in _MODULES), None)
