import time
def test_a(desk):
    t=time.time()
    print(desk.does("plan","job.yaml")); print(time.time()-t); t=time.time()
    print(desk.does("work","results")); print(time.time()-t); t=time.time()
    print(desk.does("work","results")); print(time.time()-t)
    print(desk.lpr())
    import subprocess
    print(subprocess.run(["find",str(desk.results)],capture_output=True,text=True).stdout)
