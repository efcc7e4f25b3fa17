-- The jobs that a job has enqueued, finished or not, in the order in which it did; without those whose option `trail`
-- is false.
--   select pgqueue.children('<job>');
create or replace function pgqueue.children(p_job uuid) returns setof uuid
language plpgsql stable set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
begin
    return query
    select c.id
      from (select j.id, j.enqueued_at, j.options from pgqueue.job j where j.parent_id = p_job
             union all
            select r.id, r.enqueued_at, r.options from pgqueue.result r
             where r.parent_id = p_job
               -- In a second life it is in both. Not by a join: no plan may depend on statistics.
               and r.id <> all(array(select j.id from pgqueue.job j where j.parent_id = p_job))) c
     where c.options ->> 'trail' is distinct from 'false'
     order by c.enqueued_at, c.id;
end
$$;
