-- What follows the failure of a job, for enqueue_errbacks: its errbacks, and if p_report the job that runs its hooks,
-- because whoever found the failure (the sweep, a hard time limit) cannot.
--   select pgqueue.failure_calls(j, '{"type": "WorkerLostError"}', true) from pgqueue.job j where id = '<job>';
create or replace function pgqueue.failure_calls(p_job pgqueue.job, p_error json, p_report boolean) returns setof json
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_report text := 'pg' || 'queue.report_failure';  -- in two parts: the whole word means the schema
begin
    return query
    select json_build_object('parent', p_job.id, 'root', coalesce(p_job.root_id, p_job.id), 'call', c.call)
      from (
           select json_array_elements(case json_typeof(p_job.errbacks) when 'array' then p_job.errbacks
                                      else json_build_array(p_job.errbacks) end) as call
            where p_job.errbacks is not null
            union all
           select json_build_object(
                      'task', v_report, 'queue', p_job.queue, 'priority', p_job.priority, 'immutable', true,
                      'args', json_build_array(p_job.id, p_job.task, p_job.args, p_job.kwargs, p_error),
                      'ignore_result', true, 'options', json_build_object('trail', false))
            where p_report and p_job.task <> v_report  -- else the failures of such a job would go on for ever
           ) c;
end
$$;
