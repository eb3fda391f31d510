from unicorn_hf.cli import main

if __name__ == "__main__":
    main()
