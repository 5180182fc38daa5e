%% What EMQX's authorization decides for a client. Decisions are kept for as long as EMQX's own
%% cache would keep them. EMQX's cache looks up its settings for every message, so it is not used
%% here.
-module(nats_gateway_emqx_authz).

-export([new/3]).
-export([forget/1]).
-export([batch/0]).
-export([known/4]).
-export([ask/4]).
-export([authorize/3]).

-export_type([authz/0, batch/0, quality/0]).

-record(authz, {
    ctx :: map(),
    clientinfo :: nats_gateway_emqx_client:clientinfo(),
    mountpoint :: binary(),
    %% each decision, its time, and the drain of EMQX's caches before it
    decisions = #{} :: #{key() => {allow | deny, At :: integer(), Drained :: integer()}}
}).

-opaque authz() :: #authz{}.

%% What conditions of rules see of a publish: its QoS, and whether it is retained.
-type quality() :: 0..2 | {retain, 0..2}.

-type key() :: nonempty_improper_list(Topic :: binary(), quality()).

%% Values that are looked up once per batch of publishes.
-record(batch, {
    now :: integer(),
    drained_at :: integer(),
    cache :: disabled | #{ttl := non_neg_integer(), max_size := pos_integer(), excludes := list()}
}).

-opaque batch() :: #batch{}.

-spec new(
    nats_gateway_emqx_metrics:context(), nats_gateway_emqx_client:clientinfo(), Mountpoint :: binary()
) -> authz().
new(#{ctx := Ctx}, ClientInfo, Mountpoint) ->
    #authz{ctx = Ctx, clientinfo = ClientInfo, mountpoint = Mountpoint}.

-spec forget(authz()) -> authz().
forget(Authz) -> Authz#authz{decisions = #{}}.

-spec batch() -> batch().
batch() ->
    #batch{
        now = erlang:system_time(millisecond),
        drained_at = nats_gateway_emqx_quirks:authz_drained_at(),
        cache = nats_gateway_emqx_compat:authz_cache()
    }.

%% Whether the client may publish to a topic, if a decision is known.
-spec known(Topic :: binary(), quality(), batch(), authz()) -> allow | deny | unknown.
known(Topic, Quality, Batch, #authz{decisions = Decisions}) ->
    #batch{cache = Cache, now = Now, drained_at = DrainedAt} = Batch,
    Key = [Topic | Quality],
    case {Decisions, Cache} of
        {#{Key := {Decision, At, DrainedAt}}, #{ttl := Ttl}} when Now - At < Ttl -> Decision;
        _ -> unknown
    end.

%% Asks EMQX, which may take a while.
-spec ask(Topic :: binary(), quality(), batch(), authz()) -> {allow | deny, authz()}.
ask(Topic, Quality, Batch, Authz) ->
    Decision = authorize(action(Quality), Topic, Authz),
    {Decision, remember([Topic | Quality], Decision, Batch, Authz)}.

action({retain, QoS}) -> #{action_type => publish, qos => QoS, retain => true};
action(QoS) -> #{action_type => publish, qos => QoS, retain => false}.

remember(_, _, #batch{cache = disabled}, Authz) ->
    Authz;
remember(Key = [Topic | _], Decision, Batch, Authz = #authz{decisions = Decisions}) ->
    #batch{cache = Cache, now = Now, drained_at = At} = Batch,
    #{max_size := MaxSize, excludes := Excludes} = Cache,
    Name = nats_gateway_host:unmount(Topic, Authz#authz.mountpoint),
    case lists:any(fun(Filter) -> emqx_topic:match(Name, Filter) end, Excludes) of
        true ->
            Authz;
        false when map_size(Decisions) >= MaxSize, not is_map_key(Key, Decisions) ->
            Authz#authz{decisions = #{Key => {Decision, Now, At}}};
        false ->
            Authz#authz{decisions = Decisions#{Key => {Decision, Now, At}}}
    end.

%% Operators write rules for the names that clients use, without the mountpoint.
-spec authorize(Action :: map(), Topic :: binary(), authz()) -> allow | deny.
authorize(Action, Topic, #authz{ctx = Ctx, clientinfo = ClientInfo, mountpoint = Mountpoint}) ->
    Name = nats_gateway_host:unmount(Topic, Mountpoint),
    emqx_gateway_ctx:authorize(Ctx, ClientInfo, Action, Name).
