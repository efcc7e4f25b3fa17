-- How far is each workflow? The newest first, at most 50.
-- failed > 0: what waited for it has ended with it. When the cause is mended, go on from there:
-- select pgqueue.retry_workflow('<id>'); to give one up: select pgqueue.revoke_workflow('<id>');
-- Its jobs, and what waits for what: select * from pgqueue.workflow_nodes('<id>');
select w.id, w.task, w.total, w.done, w.failed, w.running, w.waiting, w.made_at, w.last_at
  from pgqueue.workflows(50) w
 limit 50;
