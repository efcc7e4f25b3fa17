-- Enqueue what follows jobs that have just ended: the links of a SUCCESS, the errbacks of a FAILURE or REJECTED. Part of
-- finish, in whose transaction it runs: the end of a job and what follows it are stored together or not at all.
--   select pgqueue.enqueue_continuations(array_agg(j), '[{"id": "<job>", "attempt": 1, "state": "SUCCESS", "value": 5}]')
--     from pgqueue.job j where id = '<job>';
create or replace function pgqueue.enqueue_continuations(p_ended pgqueue.job[], p_outcomes json) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_links json;
    v_errbacks json;
    v_failed pgqueue.job[];
begin
    with ended as materialized (
        select distinct on (j.id) j.id, coalesce(j.root_id, j.id) as root_id, j.links, j as job,
               case when o.state in ('RETRY', 'RELEASED', 'REQUEUE', 'REPLACED') then 'REVOKED' else o.state end as state,
               coalesce(o.value, 'null') as value, coalesce(o.error, j.error) as error,
               o.state = 'FAILURE' and o.hooks is true and exists (
                   select from pgqueue.worker w where w.id = j.worker and w.hooked && array['*', j.task]) as report
          from unnest(p_ended) j
          join json_to_recordset(p_outcomes) as o (
               id uuid, attempt integer, state text, value json, error json, hooks boolean)
            on o.id = j.id and o.attempt = j.attempt
         order by j.id
    )
    select (select json_agg(f.job) from ended e
             cross join lateral pgqueue.follow(e.links, e.value, e.id, e.root_id) f (job) where e.state = 'SUCCESS'),
           (select json_agg(f.call) from ended e
             cross join lateral pgqueue.failure_calls(e.job, e.error, e.report) f (call)
             where e.state in ('FAILURE', 'REJECTED')),
           (select array_agg(e.job) from ended e where e.state <> 'SUCCESS' and (e.job).root_id is not null)
      into v_links, v_errbacks, v_failed;
    -- One statement for all: two transactions that insert the same ids or unique keys in one order cannot deadlock.
    if v_links is not null then
        perform pgqueue.enqueue_followers(v_links);
    end if;
    perform pgqueue.enqueue_errbacks(v_errbacks);
    if v_failed is not null then
        perform pgqueue.keep_calls(v_failed);
    end if;
end
$$;
