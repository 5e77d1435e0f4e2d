raise ImportError("libmissing.so: cannot open shared object file")
