#!/usr/bin/env python3
"""examples/kubernetes: its objects are what Kubernetes' own schemas ask for, and what they say to the worker is right.

Needs the Python packages kubernetes-validate and PyYAML, and the program: JOB_WORKER.
"""
import os, subprocess, sys, tempfile
import kubernetes_validate, yaml

objects = list(yaml.safe_load_all(open(os.path.dirname(__file__) + "/../examples/kubernetes/job-worker.yaml")))
for thing in objects:
    kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)

pod = next(thing for thing in objects if thing["kind"] == "Deployment")["spec"]["template"]["spec"]
worker = pod["containers"][0]
env = {variable["name"]: variable["value"] for variable in worker["env"]}
assert pod["terminationGracePeriodSeconds"] > float(env["JOB_STOP_GRACE"]), "a stop would count as a crash"
assert worker["readinessProbe"]["exec"]["command"][:2] == ["job-worker", "check"]

# The worker takes its environment, also with what Kubernetes adds for Services of unlucky names, and the steps get that.
with tempfile.TemporaryDirectory() as drive:
    links = {"MQTT_PORT": "tcp://10.0.0.1:1883", "MQTT_PORT_1883_TCP_PORT": "1883", "MQTT_SERVICE_HOST": "10.0.0.1",
             "JOB_WORKER_SERVICE_HOST": "10.0.0.2"}
    with open(drive + "/password", "w") as password:
        password.write(objects[0]["stringData"]["password"])
    env = {"PATH": os.environ["PATH"], **env, **links, "JOB_ROOT": drive, "MQTT_PASSWORD_FILE": drive + "/password"}
    def job_worker(*arguments):
        done = subprocess.run([os.environ["JOB_WORKER"], *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0 and "warning" not in done.stdout, done.stdout
    job_worker("check")
    with open(drive + "/job.json", "w") as job:
        job.write('{"steps": ["env > seen"]}')
    job_worker("run", drive)
    seen = open(drive + "/seen").read()
    assert all(f"{name}={value}\n" in seen for name, value in links.items()), seen
print(f"ok: {len(objects)} objects of examples/kubernetes, and what they say to the worker")
