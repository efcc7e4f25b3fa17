-- Count members that have ended in the steps that wait for them. A step whose last member this is becomes a job, with the
-- value or the values of its members as its first argument; where one of them has not succeeded it ends without having
-- run, and counts itself in those that wait for it: whatever waited, at any distance, has ended in this transaction.
--   select pgqueue.count_in(array[('<step>', 0, '<job>', 'SUCCESS', null, 0, '5', null)::pgqueue.part]);
-- Part of whatever ends a job: finish, bury, revoke, purge. A member counts once, however often this is called.
--
-- A step ends as the first member (by place) that has not succeeded. If the failure came from inside the header of a
-- chord whose body it is, that is a ChordError of its own, and its errbacks are enqueued; else it is the same failure: the
-- rest of a chain ends as the link that has failed. IGNORED is no failure among the values of several: it is a null.
create or replace function pgqueue.count_in(p_parts pgqueue.part[]) returns void
language plpgsql volatile
-- No nested loops: a link may be followed by thousands, and no plan may depend on how many there were before. Up to
-- PostgreSQL 17 such a plan looks so dear that it is compiled, for 200 ms each time.
set jit = off set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
as $$
declare
    v_parts pgqueue.part[] := p_parts;
    v_next pgqueue.part[];
    v_steps uuid[];
    v_complete uuid[];
    v_done record;
    v_error json;
    v_state text;
    v_culprit uuid;
    v_depth smallint;
    v_calls json[] := '{}';
    v_errbacks json[] := '{}';
    v_links json[] := '{}';
    v_call json;
    v_id uuid;
begin
    -- All that waits behind a failure may end with it. It is locked at once and in one order: two failures that meet
    -- from two sides would deadlock, since each locks what the other one comes to.
    if exists (select from unnest(p_parts) p where p.state <> 'SUCCESS') then
        perform from pgqueue.step s
          where s.id = any(array(
                with recursive behind (id) as (
                    select p.step from unnest(p_parts) p where p.state <> 'SUCCESS'
                     union
                    select n.id from behind b
                     cross join lateral unnest((select s.steps from pgqueue.step s where s.id = b.id)) n (id)
                )
                select b.id from behind b
                 union
                select p.step from unnest(p_parts) p))
          order by s.id for update;
    end if;
    loop
        while cardinality(v_parts) > 0 loop
            v_steps := array(select distinct p.step from unnest(v_parts) p);
            -- In one order, so that two who count in the same steps cannot deadlock.
            perform from pgqueue.step s where s.id = any(v_steps) order by s.id for update;

            with part as (
                insert into pgqueue.part as t
                select p.*
                  from unnest(v_parts) p
                 -- Also where there is no such step: it has ended, was revoked perhaps, and retry_workflow may bring it back.
                 where not exists (select from pgqueue.step s where s.id = p.step and s.id = any(v_steps) and s.members = 1)
                    on conflict do nothing
                returning t.step
            ), counted as (
                update pgqueue.step s
                   set waits = s.waits - (select count(*) from part where part.step = s.id)
                 where s.id = any(array(select part.step from part))
                returning s.id, s.waits
            )
            select array(select c.id from counted c where c.waits = 0
                          union all
                         select s.id from pgqueue.step s where s.id = any(v_steps) and s.members = 1)
              into v_complete;
            exit when cardinality(v_complete) = 0;

            v_next := '{}';
            for v_done in
                with step as materialized (
                    select s from pgqueue.step s where s.id = any(v_complete)
                ), member as materialized (
                    select m.*, (step.s).takes from pgqueue.part m join step on (step.s).id = m.step
                     where m.step = any(v_complete)
                     union all
                    select m.*, (step.s).takes from unnest(v_parts) m join step on (step.s).id = m.step and (step.s).members = 1
                ), summed as materialized (
                    select m.step, '[' || string_agg(coalesce(m.value::text, 'null'), ',' order by m.place) || ']' as list,
                           (array_agg(m.place order by m.place) filter (
                               where m.state <> 'SUCCESS' and not (m.state = 'IGNORED' and m.takes = 'values')))[1] as failed
                      from member m group by m.step
                ), last as materialized (
                    select distinct on (p.step) p.step, p.job from unnest(v_parts) p order by p.step, p.place desc
                )
                select step.s as step, summed.list::json as list, last.job as last, m.job as failed, m.state, m.culprit,
                       m.depth, m.error
                  from step
                  join summed on summed.step = (step.s).id
                  join last on last.step = (step.s).id
                  left join member m on m.step = (step.s).id and m.place = summed.failed
            loop
                if v_done.failed is null and (v_done.step).task is not null then
                    v_calls := array_append(v_calls, pgqueue.step_call(v_done.step, v_done.list, v_done.last));
                    continue;
                end if;
                v_culprit := v_done.culprit;
                v_depth := v_done.depth;
                v_state := v_done.state;
                v_error := v_done.error;
                if v_done.failed is null then
                    v_state := 'SUCCESS';
                    v_depth := (v_done.step).depth;
                elsif v_done.depth > (v_done.step).depth then
                    v_state := 'FAILURE';
                    v_error := pgqueue.chord_error(v_done.failed, v_done.state, v_done.error);
                    v_culprit := (v_done.step).id;
                    v_depth := (v_done.step).depth;
                elsif v_done.failed = v_done.culprit and json_typeof(v_error) = 'object' then
                    v_error := pgqueue.json_with(v_error, json_build_object('by', v_culprit));
                end if;
                -- What stands in the place of a job has its errbacks, wherever in it something has failed.
                if v_culprit = (v_done.step).id
                   or v_state in ('FAILURE', 'REJECTED') and (v_done.step).call ->> 'stands_for' = 'true' then
                    for v_call in
                        select c.call
                          from json_array_elements(
                               case json_typeof((v_done.step).call -> 'errbacks') when 'array'
                                    then (v_done.step).call -> 'errbacks' end) c (call)
                    loop
                        v_errbacks := array_append(v_errbacks, json_build_object(
                            'parent', (v_done.step).id, 'root', (v_done.step).root_id, 'call', v_call));
                    end loop;
                end if;
                if v_state = 'SUCCESS' and json_typeof((v_done.step).call -> 'links') = 'array' then
                    for v_call in
                        select f.call from pgqueue.follow((v_done.step).call -> 'links', v_done.list, (v_done.step).id,
                                                          (v_done.step).root_id) f (call)
                    loop
                        v_links := array_append(v_links, v_call);
                    end loop;
                end if;
                perform pgqueue.end_step(v_done.step, v_state, v_error, v_done.last,
                                         case when v_state = 'SUCCESS' then v_done.list end);
                -- One by one: joined as arrays, each time all of them would be copied.
                foreach v_id in array coalesce((v_done.step).steps, '{}') loop
                    v_next := array_append(v_next, row(
                        v_id, (v_done.step).place, (v_done.step).id, v_state, case when v_state <> 'SUCCESS' then v_culprit end,
                        v_depth, case when v_state = 'SUCCESS' then v_done.list end, v_error)::pgqueue.part);
                end loop;
            end loop;
            -- The parts of a step that has failed are kept: retry_workflow goes on from there.
            -- Those of wide ones are left to prune: the body waits for this commit.
            delete from pgqueue.part t
             where t.step = any(array(
                   select s.id from pgqueue.step s
                    where s.id = any(v_complete) and s.members <= 100
                      -- By id alone: with a condition on state this may become a walk over all that has ever failed.
                      and coalesce((select r.state from pgqueue.result r where r.id = s.id limit 1), 'SUCCESS') = 'SUCCESS'));
            delete from pgqueue.step s where s.id = any(v_complete);
            v_parts := v_next;
        end loop;

        exit when cardinality(v_calls) = 0;
        -- Who has succeeded before, under an id that its caller chose, is not run again and counts at once.
        v_parts := pgqueue.enqueue_steps(array_to_json(v_calls));
        v_calls := '{}';
        exit when v_parts is null;
    end loop;

    if cardinality(v_links) > 0 then
        perform pgqueue.enqueue_followers(array_to_json(v_links));
    end if;
    if cardinality(v_errbacks) > 0 then
        perform pgqueue.enqueue_errbacks(array_to_json(v_errbacks));
    end if;
end
$$;
