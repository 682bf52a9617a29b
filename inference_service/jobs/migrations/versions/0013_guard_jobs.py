"""Limits the changes of jobs by roles that may not write results, such as upstreams.

A right to a column concerns all rows: it alone would let an upstream queue another one's succeeded job again, or end
running jobs. So a trigger compares each new row with the one that submitting, cancelling or retrying a job leads to.
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the trigger. It concerns no role that may write the column `result`."""
    op.execute(
        """
        CREATE FUNCTION guard_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            expected record;
        BEGIN
            IF has_column_privilege(TG_RELID, 'result', 'UPDATE') THEN
                RETURN NEW;
            END IF;
            IF TG_OP = 'INSERT' THEN
                expected := NEW;
                expected.state := 'queued';
            ELSE
                expected := OLD;
                expected.state := NEW.state;
                CASE OLD.state || ' to ' || NEW.state
                WHEN 'queued to queued' THEN
                    expected.queue := NEW.queue;
                    expected.dispatched_at := now();
                    expected.redis_run_id := NEW.redis_run_id;
                    expected.dispatched_to := NEW.dispatched_to;
                WHEN 'running to running' THEN
                    expected.cancel_requested := true;
                WHEN 'queued to cancelled' THEN
                    expected.finished_at := now();
                    expected.error_code := 'cancelled';
                    expected.error_message := NEW.error_message;
                WHEN 'failed to queued', 'cancelled to queued' THEN
                    expected.returned_attempts := OLD.attempt;
                    expected.excused := OLD.attempt;
                    expected.not_before := now();
                    expected.dispatched_at := NULL;
                    expected.cancel_requested := false;
                    expected.on_cpu := false;
                    expected.avoided_workers := NULL;
                    expected.started_at := NULL;
                    expected.finished_at := NULL;
                    expected.stage := NULL;
                    expected.progress := 0;
                    expected.timings_s := NULL;
                    expected.error_code := NULL;
                    expected.error_message := NULL;
                ELSE
                    expected := NULL;
                END CASE;
            END IF;
            IF NEW IS DISTINCT FROM expected THEN
                RAISE insufficient_privilege
                USING MESSAGE = format('permission denied: %s may only submit, cancel and retry jobs', current_user);
            END IF;
            RETURN NEW;
        END
        $$
        """
    )
    op.execute("CREATE TRIGGER guard_jobs BEFORE INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION guard_jobs()")


def downgrade() -> None:
    """Drops the trigger."""
    op.execute("DROP TRIGGER guard_jobs ON jobs")
    op.execute("DROP FUNCTION guard_jobs()")
