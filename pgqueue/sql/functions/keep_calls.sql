-- Keep with the results of jobs of a workflow that have not succeeded what else their calls had to say, so that
-- retry_workflow can make them anew.
--   select pgqueue.keep_calls(array_agg(j)) from pgqueue.job j where j.id = '<job>';
create or replace function pgqueue.keep_calls(p_ended pgqueue.job[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_job pgqueue.job;
begin
    foreach v_job in array p_ended loop
        update pgqueue.result r
           set again = pgqueue.without_nulls(json_build_object(
                   'links', v_job.links, 'errbacks', v_job.errbacks, 'steps', v_job.steps, 'place', v_job.place,
                   'depth', v_job.depth, 'unique_key', v_job.unique_key, 'ignore_result', v_job.ignore_result,
                   'time_limit', v_job.time_limit, 'soft_time_limit', v_job.soft_time_limit))
         -- Not `<>`, which may become a walk over the index of all that has ever failed.
         where r.id = v_job.id and (r.state = 'SUCCESS') is false;
    end loop;
end
$$;
