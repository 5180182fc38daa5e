%% Decides which subscriptions of a client may go to the host, and which text a refused one gets.
-module(nats_gateway_subscribing).

-export([judge/3]).
-export([refused/3]).
-export([subject/2]).

-include("nats_gateway.hrl").

-export_type([limits/0]).

-type limits() :: #{
    max_subscriptions := pos_integer() | infinity, max_sub_tokens := pos_integer() | infinity
}.

-define(INVALID_SUBJECT, <<"-ERR 'Invalid Subject'\r\n">>).

%% The checks that follow the login's permission. Their order is that of nats-server.
-spec judge(#sub{}, limits(), nats_gateway_subscriptions:subscriptions()) ->
    ok | in_use | nats_gateway_host:refusal().
judge(Sub = #sub{subject = Subject, sid = Sid}, Limits, Subs) ->
    #{max_subscriptions := Max, max_sub_tokens := MaxTokens} = Limits,
    IsReserved = nats_gateway_publishing:is_reserved_filter(Subject),
    HasTooManyTokens = has_more_tokens(Subject, MaxTokens),
    %% `infinity' is an atom, and atoms are greater than numbers.
    IsFull = nats_gateway_subscriptions:count(Subs) >= Max,
    InUse = nats_gateway_subscriptions:member(Sid, Subs),
    if
        IsReserved -> denied;
        HasTooManyTokens -> too_many_tokens;
        IsFull -> subscriptions_exceeded;
        InUse -> in_use;
        Sub#sub.filter =:= invalid; Sub#sub.share_name =:= invalid -> invalid_subject;
        true -> ok
    end.

has_more_tokens(_, infinity) -> false;
has_more_tokens(Subject, Max) -> length(binary:matches(Subject, <<".">>)) >= Max.

%% The texts are nats-server's. For limits of the broker they are those of its own limits
%% `max_sub_tokens' and `max_subscriptions'.
-spec refused(nats_gateway_host:refusal(), Subject :: binary(), QueueGroup :: undefined | binary()) ->
    binary().
refused(denied, Subject, undefined) ->
    violation(Subject, []);
refused(denied, Subject, QueueGroup) ->
    violation(Subject, [<<" using queue ">>, nats_gateway_nif:quote(QueueGroup)]);
refused(too_many_tokens, Subject, _) ->
    violation(Subject, <<", too many tokens">>);
refused(invalid_subject, _, _) ->
    ?INVALID_SUBJECT;
refused(subscriptions_exceeded, _, _) ->
    nats_gateway_ending:error_line(maximum_subscriptions_exceeded).

violation(Subject, More) ->
    nats_gateway_ending:violation([<<"Subscription to ">>, nats_gateway_nif:quote(Subject), More]).

%% The subject of a topic filter.
-spec subject(Filter :: binary(), Mountpoint :: binary()) -> binary().
subject(Filter, Mountpoint) ->
    Unmounted = nats_gateway_host:unmount(Filter, Mountpoint),
    Tokens = [token(Level) || Level <- binary:split(Unmounted, <<"/">>, [global])],
    iolist_to_binary(lists:join(<<".">>, Tokens)).

token(<<"+">>) -> <<"*">>;
token(<<"#">>) -> <<">">>;
token(Level) -> nats_gateway_nif:subject(Level, <<>>).
